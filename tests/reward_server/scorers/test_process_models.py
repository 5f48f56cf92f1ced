"""Process reward models: a score for each step of a completion, and what the steps come to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from reward_server.scorers.steps import aggregated
from reward_server.types import Status
from tests.support.builders import make_group, make_tokenizer, save_tiny_model
from tests.support.reward_models import (
    as_messages,
    load_error,
    loaded,
    make,
    save_model_with_code,
    save_reward_model,
    scored,
)


@pytest.fixture(scope="module")
def process_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_reward_model(tmp_path_factory.mktemp("process-model"), labels=2, kind="Token")


def probabilities_at(model: str, text: str, ends: list[int]) -> list[float]:
    """Of label 1, from transformers itself. The tokens are bytes."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForTokenClassification, AutoTokenizer  # noqa: PLC0415

    ids = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = AutoModelForTokenClassification.from_pretrained(model)(input_ids=ids).logits[0]
    return logits.softmax(-1)[ends, 1].tolist()


def steps_of(model: str, completions: Any, prompt: Any = "Q:", **options: Any) -> Any:
    """The result of a scorer whose steps end in a line break; `options` are those of `steps`."""
    scorer = loaded(model, label=1, steps={"separator": "\n", **options})
    return scorer.score(make_group(completions, prompt))


def test_a_process_model_scores_each_step_at_its_end(process_model: str) -> None:
    result = steps_of(process_model, ["one\ntwo\n\nthree", "a"])
    #                                             Q:one\n  two\n  three\n
    expected = probabilities_at(process_model, "Q:one\ntwo\nthree\n", [5, 9, 15])
    assert result.extra["rm/steps"][0] == pytest.approx(expected, abs=1e-5)
    assert result.scores[0].value == pytest.approx(min(expected), abs=1e-5)
    assert result.extra["rm/steps"][1] == pytest.approx(probabilities_at(process_model, "Q:a\n", [3]), abs=1e-5)


def test_steps_are_aggregated_by_min_last_mean_or_product(process_model: str) -> None:
    completion = "one\ntwo\nthree"
    steps = steps_of(process_model, [completion]).extra["rm/steps"][0]
    assert len(set(steps)) == 3
    expected = {"min": min(steps), "last": steps[-1], "mean": sum(steps) / 3, "product": math.prod(steps)}
    for aggregate, value in expected.items():
        assert steps_of(process_model, [completion], aggregate=aggregate).scores[0].value == pytest.approx(value)


def test_the_step_token_may_be_another_and_a_completion_cannot_forge_it(process_model: str) -> None:
    result = steps_of(process_model, ["one\nt*o"], token="*")
    expected = probabilities_at(process_model, "Q:one*t*o*", [5, 9])
    assert result.extra["rm/steps"][0] == pytest.approx(expected, abs=1e-5)


def test_messages_are_scored_by_step_after_the_prompt_as_the_template_has_it(process_model: str) -> None:
    prompt = [{"role": "user", "content": "Is it?"}]
    result = steps_of(process_model, as_messages(["one\ntwo"]), prompt)
    start = "<|user|>Is it?\n<|assistant|>"
    expected = probabilities_at(process_model, f"{start}one\ntwo\n", [len(start) + 3, len(start) + 7])
    assert result.extra["rm/steps"][0] == pytest.approx(expected, abs=1e-5)


def test_steps_that_are_cut_off_do_not_count_and_a_text_without_any_left_fails(process_model: str) -> None:
    options = {"label": 1, "steps": {"separator": "\n"}, "max_length": 7, "truncate": "right"}
    cut = loaded(process_model, **options).score(make_group(["one\ntwo", "oneandtwo"], "Q:"))
    assert cut.extra["rm/steps"][0] == pytest.approx(probabilities_at(process_model, "Q:one\n", [5]), abs=1e-5)  # type: ignore[union-attr]
    assert cut.scores[1].status is Status.FAILED  # type: ignore[union-attr]
    assert cut.scores[1].message == "no step ends within max_length (7) of 12 tokens; raise it"  # type: ignore[union-attr]
    assert cut.metrics == {"rm/truncated": 0.5}  # type: ignore[union-attr]


def test_a_step_that_is_no_number_makes_no_score() -> None:
    assert math.isnan(aggregated([1.0, math.nan], "min"))
    assert math.isnan(aggregated([math.nan, 1.0], "last"))


def test_a_classifier_of_texts_is_no_process_model(tmp_path: Path) -> None:
    message = load_error(make(str(save_tiny_model(tmp_path)), steps={}))
    assert "is no process reward model" in message
    assert "trained for token classification" in message


def test_a_step_classifier_of_two_labels_with_code_and_a_step_token_of_its_own(tmp_path: Path) -> None:
    """As Qwen2.5-Math-PRM: AutoModel, two labels, <extra_0> behind each step."""
    model = save_model_with_code(tmp_path, answers="steps")
    tokenizer = make_tokenizer()
    mark = tokenizer.convert_tokens_to_ids("<bos>")  # a special token, as <extra_0> is
    scorer = make(model, label=1, trust_remote_code=True, steps={"separator": "\n\n", "token": "<bos>"})
    scorer.load()
    forged = scored(scorer, ["one<bos>\n\ntwo"], "Q:")
    result = scored(scorer, ["one\n\ntwo"], "Q:")
    ids = [*tokenizer("Q:one")["input_ids"], mark, *tokenizer("two")["input_ids"]]
    expected = probabilities_of_code(model, [*ids, mark], [5, 9])
    assert result.extra["rm/steps"][0] == pytest.approx(expected, abs=1e-5)
    assert result.scores[0].value == pytest.approx(min(expected), abs=1e-5)
    assert len(forged.extra["rm/steps"][0]) == 2  # the one that the completion wrote itself is no step


def probabilities_of_code(model: str, ids: list[int], ends: list[int]) -> list[float]:
    """Of label 1, from the checkpoint's own code."""
    import torch  # noqa: PLC0415
    from transformers import AutoModel  # noqa: PLC0415

    with torch.inference_mode():
        logits = AutoModel.from_pretrained(model, trust_remote_code=True)(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
        ).logits[0]
    return logits.softmax(-1)[ends, 1].tolist()
