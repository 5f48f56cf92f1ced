"""Values of dataset columns as JSON has them: `plain`.

Owns the translation of what datasets hand out (numpy and torch values, dates, decimals). Needs neither numpy nor torch:
`arrays`, which does, is loaded when an array comes. Knows nothing of columns, calls or trainers.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Mapping
from typing import Any


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
        return {str(key) if _is_array(key) else key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if _is_array(value):
        from reward_server.client import arrays  # noqa: PLC0415 - numpy is there where arrays are

        return arrays.plain_array(value)
    return _of_scalar(value)


def _is_array(value: Any) -> bool:
    """Whether it is an array, a tensor, or a scalar of one."""
    return hasattr(value, "tolist") and hasattr(value, "dtype")


def is_nan(value: Any) -> bool:
    """Whether it is a NaN or pandas' NaT, which alone differ from themselves."""
    return bool(value != value)  # noqa: PLR0124


def _of_scalar(value: Any) -> Any:
    if isinstance(value, (datetime.date, datetime.time)):  # datetime is a date
        return None if is_nan(value) else value.isoformat()
    if isinstance(value, datetime.timedelta):
        return None if is_nan(value) else value.total_seconds()
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
