"""Which dataset columns are sent, and which cannot be."""

from __future__ import annotations

from datasets import Image, List, Value

from grpo_plugin.rewards.columns import media_columns, sent_columns


def test_bytes_and_media_are_found_however_deep_they_lie() -> None:
    features = {
        "picture": Image(),
        "pictures": List(Image()),
        "nested": List({"name": Value("string"), "parts": List(Value("large_binary"))}),
        "blob": Value("binary"),
        "numbers": List(Value("int64")),
    }
    assert dict(media_columns(features)) == {
        "picture": "Image",
        "pictures": "Image",
        "nested": "bytes",
        "blob": "bytes",
    }


def test_the_prompt_and_its_images_are_no_columns_and_chosen_ones_alone_are_sent() -> None:
    names = ["prompt", "answer", "image", "level"]
    assert sent_columns(names, None) == ["answer", "level"]
    assert sent_columns(names, ["level", "absent"]) == ["level"]
