"""Arrays, tensors and their scalars as plain values of JSON.

Owns what numpy's and torch's types become. Loaded by `plain` when an array comes, since it needs numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reward_server.client.plain import is_nan, plain


def plain_array(value: Any) -> Any:
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
    return None if isinstance(value, float) and is_nan(value) else value
