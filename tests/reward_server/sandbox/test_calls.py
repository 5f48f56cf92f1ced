"""The sandbox: a function of the program is called by name, and what it returned is compared where no program runs."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from reward_server.sandbox import calls
from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End, Outcome
from tests.support.sandboxes import needs_sandlock, outcome

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_sandlock]


async def called(runners: Runners, program: str, *arguments: Any, **names: Any) -> Outcome:
    return await outcome(runners, program, call=calls.request("f", arguments), **names)


def equal(answer: str, expected: Any) -> bool:
    return calls.is_equal(answer, expected, lambda number, wanted: abs(number - wanted) < 1e-9)


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("def f(a, b):\n    return a + b", (1, 2), 3),
        ("class Solution:\n    def f(self, a, b):\n        return a + b", ("x", "y"), "xy"),
        (
            "class Solution:\n    @staticmethod\n    def f(a):\n        return a",
            ([1, [None, True]],),
            [1, [None, True]],
        ),
        ("f = lambda *xs: xs", (1, 2.5), [1, 2.5]),
        ("def f(d):\n    return {(k, 1): v for k, v in d.items()}", ({"a": 1},), None),
        ("def f(d):\n    return {**d, 2: None}", ({"a": 1.5},), {"a": 1.5, "2": None}),
        ("def f(n):\n    return n * n", (10**2000,), 10**4000),
        ("from fractions import Fraction\ndef f(n):\n    return Fraction(n, 4)", (1,), 0.25),
        ("from decimal import Decimal\ndef f(n):\n    return Decimal(n) / 4", (1,), 0.25),
        ("def f():\n    return float('nan')", (), float("nan")),
        ("def f():\n    print('noise')\n    return None", (), None),
        ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f():\n    return P(1, 2)", (), [1, 2]),
    ],
)
async def test_a_function_is_called_and_its_value_compared(
    runners: Runners, program: str, arguments: tuple[Any, ...], expected: Any
) -> None:
    returned = await called(runners, program, *arguments)
    assert returned.end is End.RETURNED, returned
    is_right = "(k, 1)" not in program
    assert equal(returned.stdout, expected) is is_right
    assert not equal(returned.stdout, [expected])
    assert not equal(returned.stdout, "other")


async def test_the_programs_own_function_is_called_and_never_an_imported_name_of_the_same_name(
    runners: Runners,
) -> None:
    request = calls.request("gcd", [4, 6])
    program = "class Solution:\n    def gcd(self, a, b):\n        return gcd(a, b) * 10"
    returned = await outcome(runners, program, call=request, common_names=True)
    assert equal(returned.stdout, 20)
    lacking = await outcome(runners, "def other(a, b):\n    return gcd(a, b)", call=request, common_names=True)
    assert (lacking.end, lacking.detail) == (End.RUNTIME_ERROR, "NameError: name 'gcd' is not defined")


async def test_what_leetcode_imports_is_there_only_if_asked_for(runners: Runners) -> None:
    program = (
        "class Solution:\n    def f(self, xs: List[int]) -> Optional[int]:\n        q = deque(xs)\n"
        "        heapify(xs)\n        return xs[0] + bisect.bisect_left(xs, 2) + math.floor(sqrt(4)) + (inf > q[0])"
    )
    assert equal((await called(runners, program, [3, 1], common_names=True)).stdout, 1 + 1 + 2 + 1)
    assert (await called(runners, program, [3, 1])).detail.startswith("NameError: name 'List' is not defined")
    deep = "def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)"
    assert equal((await called(runners, deep, 10_000, common_names=True)).stdout, 10_000)


@pytest.mark.parametrize(
    ("program", "end", "detail"),
    [
        ("def f(x):\n    return 1 / 0", End.RUNTIME_ERROR, "ZeroDivisionError: division by zero"),
        ("def g(x):\n    return 1", End.RUNTIME_ERROR, "NameError: name 'f' is not defined"),
        ("def f():\n    return 1", End.RUNTIME_ERROR, "TypeError: f() takes 0 positional arguments"),
        ("def f(x):\n    import os\n    os._exit(0)", End.RUNTIME_ERROR, "it ended before it returned"),
        ("def f(x):\n    exit()", End.RUNTIME_ERROR, "SystemExit: None"),
        ("def f(x):\n    while True: pass", End.TIME_LIMIT, ""),
        ("def f(x):\n    return bytearray(1 << 40)", End.MEMORY_LIMIT, "MemoryError: "),
        ("def f(x):\n    return 'x' * (2 << 20)", End.OUTPUT_LIMIT, ""),
        ("def f(x):\n    a = []\n    a.append(a)\n    return a", End.RUNTIME_ERROR, ""),
        ("no Python", End.RUNTIME_ERROR, "SyntaxError"),
    ],
)
async def test_the_ends_of_a_call_are_told_apart(runners: Runners, program: str, end: End, detail: str) -> None:
    got = await called(runners, program, 1)
    assert got.end is end, got
    assert got.detail.startswith(detail)


@pytest.mark.parametrize(
    "answer",
    [
        "", "value", "[]", '["value"]', '["value", 1, 2]', '["raised", 1]', '["value", {"object": [0, "A"]}]',
        '["value", {"float": "x"}]', '["value", {"float": "1"}]', '["value", {"int": "0x"}]', '["value", {}]',
        '["value", {"tuple": {"0": 1}}]', '["value", {"dict": 3}]', '["value", {"dict": [[[], 1]]}]', "[" * 100_000,
        '["value", {"Fraction": "1e999999999"}]', '["value", {"Decimal": "1e999999999"}]',
        '["value", ' + "9" * 9999 + "]",
        '["value", {"set": [3]}]', '["value", [3]]', '["value", "3"]', '["value", {"bytes": "33"}]',
    ],
)  # fmt: skip
@pytest.mark.parametrize("expected", [3, "x", [1], {"a": 1}, 2.5, None])
async def test_no_answer_that_a_program_may_make_up_is_equal_or_an_error(answer: str, expected: Any) -> None:
    assert equal(answer, expected) is False


async def test_colliding_keys_and_long_numbers_cost_no_more_than_their_length() -> None:
    keys = [[index * ((1 << 61) - 1), 1] for index in range(40_000)]
    for value in ({"dict": keys}, {"int": "0x" + "f" * 1_000_000}, {"Fraction": f"{'9' * 400_000}/7"}):
        began = time.monotonic()
        assert not equal(json.dumps(["value", value]), {"a": 1})
        assert not equal(json.dumps(["value", value]), 1)
        assert time.monotonic() - began < 5


async def test_arguments_that_cannot_be_sent_are_refused() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ValueError, match="nested too deep"):
        calls.request("f", nested)
    with pytest.raises(ValueError, match="holds a object"):
        calls.request("f", [object()])
