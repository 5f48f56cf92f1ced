"""Dataset columns that are sent to the reward service: which ones.

Owns the rule which columns of a row are sent. Knows nothing of calls, ranks or scorers, and of plain values, which
`reward_server.client.plain` makes of what datasets hand out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

# What TRL itself does not hand to reward functions as columns (TRL 1.16, GRPOTrainer._calculate_rewards, line 1584),
# and the images, which are sent inside the prompt.
NOT_COLUMNS = frozenset({"prompt", "completion", "completion_ids", "image", "images"})

# TRL calls each reward function with `prompts=` and `completions=` of its own beside the columns (line 1629).
RESERVED_COLUMNS = ("prompts", "completions")

# Features of `datasets` that hold bytes or decoded media; by name, since not every version has all of them.
_MEDIA_FEATURES = frozenset({"Image", "Audio", "Video", "Pdf", "Nifti", "Mesh"})


def sent_columns(names: Collection[str], chosen: Collection[str] | None) -> list[str]:
    """The columns of a dataset that are sent: `chosen` (reward_columns), or all of them if it is None."""
    return [name for name in names if name not in NOT_COLUMNS and (chosen is None or name in chosen)]


def row_columns(
    row: Mapping[str, Any], index: int, added: Mapping[str, Any], chosen: Collection[str] | None
) -> dict[str, Any]:
    """The columns of row `index` as TRL hands them to reward functions: the dataset's, and what a rollout added.

    `added` holds a list with a value a row, or one value for all of them.
    """
    own = {
        name: values[index] if isinstance(values, list) else values
        for name, values in added.items()
        if not isinstance(values, list) or index < len(values)
    }
    columns = {**row, **own}
    return {name: columns[name] for name in sent_columns(columns, chosen)}


def media_columns(features: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The columns of a dataset that hold bytes or media, and what it is, by the dataset's features."""
    for name, feature in features.items():
        found = _media_in(feature)
        if found is not None:
            yield name, found


def _media_in(feature: Any) -> str | None:
    """The first kind of bytes or media inside a feature, which may be nested; None if there is none."""
    if type(feature).__name__ in _MEDIA_FEATURES:
        return type(feature).__name__
    if "binary" in str(getattr(feature, "dtype", "")):
        return "bytes"
    inner = getattr(feature, "feature", feature)
    parts = inner.values() if isinstance(inner, Mapping) else inner if isinstance(inner, (list, tuple)) else ()
    if inner is not feature and not parts:
        return _media_in(inner)
    return next((found for found in map(_media_in, parts) if found), None)
