"""Dataset columns as they are sent to the reward service: which ones, and as which plain values.

Owns the rule which columns of a row are sent, and the translation of what datasets hand out (numpy and torch values,
dates, decimals) into what JSON has. Knows nothing of calls, ranks or scorers.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

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


def plain(value: Any) -> Any:
    """A column's value as JSON has it: numbers, text, lists, mappings, None.

    Arrays, tensors and their scalars become numbers and lists, and their NaN becomes None, which is what `with_format`
    made NaN of. Dates and times become ISO 8601 text, durations seconds, decimals the number that they are, or text
    where a float would round them. What has no plain form, such as bytes and images, is returned as it is; the client
    refuses it by name when it is sent.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {str(key) if isinstance(key, np.generic) else key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # an array, a tensor, or a scalar of one
        return _of_array(value)
    return _of_scalar(value)


def _of_array(value: Any) -> Any:
    """The numbers, texts and lists of an array, a tensor, or a scalar of one."""
    if str(value.dtype) in ("torch.float32", "torch.float16"):
        value = value.detach().cpu().numpy()
    kind = getattr(value.dtype, "kind", "")
    if kind == "M":
        return _dates(np.asarray(value))
    if kind == "m":
        return _without_nan((np.asarray(value) / np.timedelta64(1, "s")).tolist())
    if kind == "O":
        return plain(value.tolist())
    if kind == "f" and value.dtype.itemsize < 8:
        return _without_nan(_floats(np.asarray(value)))
    return _without_nan(value.tolist())


def _floats(value: Any) -> Any:
    """float32 as the decimal number that it was made of: 0.1, which `tolist` would make 0.10000000149011612."""
    return [_floats(item) for item in value] if value.ndim else float(str(value[()]))


def _dates(value: Any) -> Any:
    return [_dates(item) for item in value] if value.ndim else _date(value[()])


def _date(value: Any) -> str | None:
    """A datetime64 as the text that the same date has without `with_format`; None for not-a-time."""
    if np.isnat(value):
        return None
    in_us = value.astype("datetime64[us]") if np.datetime_data(value.dtype)[0] in ("ns", "ps", "fs", "as") else value
    if in_us != value or not hasattr(in_us.tolist(), "isoformat"):
        return str(value)  # finer, or further away, than Python's datetime reaches
    return str(in_us.tolist().isoformat())


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and _is_nan(value) else value


def _is_nan(value: Any) -> bool:
    """Whether it is a NaN or pandas' NaT, which alone differ from themselves."""
    return bool(value != value)  # noqa: PLR0124


def _of_scalar(value: Any) -> Any:
    if isinstance(value, (datetime.date, datetime.time)):  # datetime is a date
        return None if _is_nan(value) else value.isoformat()
    if isinstance(value, datetime.timedelta):
        return None if _is_nan(value) else value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return _of_decimal(value)
    return value


def _of_decimal(value: decimal.Decimal) -> int | float | str | None:
    if value.is_nan():
        return None
    if not value.is_finite():
        return str(value)
    if value == value.to_integral_value():
        return int(value)
    return float(value) if decimal.Decimal(repr(float(value))) == value else str(value)


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
