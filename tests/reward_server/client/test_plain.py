"""Dataset columns as the plain values that they stand for."""

from __future__ import annotations

import datetime
import decimal
import json
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from reward_server.client.plain import plain

NOON = datetime.datetime(2026, 1, 1, 12)
VALUES = {
    "number": (1, 1),
    "share": (0.1, 0.1),  # which `with_format("torch")` makes a float32
    "flag": (True, True),
    "text": ("x", "x"),
    "numbers": ([1, 2], [1, 2]),
    "shares": ([0.1, 2.5], [0.1, 2.5]),
    "ragged": ([[1], [2, 3]], [[1], [2, 3]]),
    "texts": (["a", "b"], ["a", "b"]),
    "messages": ([{"role": "user", "content": "hi"}], [{"role": "user", "content": "hi"}]),
    "when": (NOON, "2026-01-01T12:00:00"),
    "day": (NOON.date(), "2026-01-01"),
    "price": (decimal.Decimal("1.50"), 1.5),
    "took": (datetime.timedelta(seconds=1.5), 1.5),
}


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
@pytest.mark.parametrize("name", VALUES)
def test_a_column_is_the_same_plain_value_in_every_format(name: str, form: str | None) -> None:
    value, expected = VALUES[name]
    if form == "torch" and name in ("when", "day", "price", "took"):
        pytest.skip("datasets has no tensor of these")
    row: Any = Dataset.from_dict({name: [value, value]}).with_format(form)[0]
    sent = json.loads(json.dumps(plain(row[name]), allow_nan=False))
    assert sent == expected
    assert type(sent) is type(expected)


def test_a_missing_number_of_a_formatted_column_is_none_and_not_nan() -> None:
    row = Dataset.from_dict({"x": [None, 1.0], "xs": [[1.0, None], [2.0]]}).with_format("numpy")[0]
    assert plain(row) == {"x": None, "xs": [1.0, None]}


def test_scalars_and_arrays_of_numpy_and_torch_are_numbers_and_lists() -> None:
    assert plain(np.int64(3)) == 3
    assert plain(np.array([[1, 2]])) == [[1, 2]]
    assert plain(torch.tensor([1.5, float("nan")]).bfloat16()) == [1.5, None]
    assert plain(np.array(["2026-01-01", "NaT"], "datetime64[ns]")) == ["2026-01-01T00:00:00", None]
    assert plain(np.datetime64("2026-01-01T00:00:00.000000001")) == "2026-01-01T00:00:00.000000001"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2.00", 2), ("0.1", 0.1), ("NaN", None), ("0.12345678901234567890", "0.12345678901234567890")],
)
def test_a_decimal_is_a_number_where_that_rounds_nothing_and_text_elsewhere(text: str, expected: Any) -> None:
    assert plain(decimal.Decimal(text)) == expected
