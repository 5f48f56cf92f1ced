"""The scorer `code`: what a run is worth."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

import pytest

from reward_server.scorers.code import CodeScorer
from reward_server.scorers.code.outputs import same_output
from reward_server.types import Group, Score, Status
from tests.support.code import ADD_ONE, TESTS, loaded, make, result, sharing, values

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_score_is_the_share_of_tests_passed_and_the_reason_is_logged(scorer: CodeScorer) -> None:
    completions = [ADD_ONE, "print(abs(int(input())) + 1)", "print(1)", "1 / 0", "```bash\n```"]
    got = await result(scorer, completions, TESTS)
    assert [score.value for score in got.scores] == [1.0, 2 / 3, 0.0, 0.0, 0.0]
    assert got.extra["tests_end"] == ["passed", "wrong_answer", "wrong_answer", "runtime_error", "no_program"]
    assert got.extra["tests_passed"] == ["3/3", "2/3", "0/3", "0/3", "0/3"]
    assert got.extra["tests_detail"][1:4] == ["printed '2'", "printed '1'", "ZeroDivisionError: division by zero"]
    assert got.metrics["tests/wrong_answer"] == 0.4
    assert got.metrics["tests/time_limit"] == 0.0


async def test_with_all_one_failed_test_is_worth_nothing(scorer: CodeScorer) -> None:
    strict = sharing(scorer, score="all")
    assert await values(strict, [ADD_ONE, "print(abs(int(input())) + 1)"], TESTS) == [1.0, 0.0]


async def test_asserts_are_tests_too(scorer: CodeScorer) -> None:
    tests = ["assert f(1) == 2", "assert f([]) is None", "import math\nassert math.isclose(f(0.5), 1.5)"]
    programs = [
        "def f(x):\n    return x + 1 if x != [] else None",
        "def f(x):\n    return x + 1",
        "import os\nos._exit(0)",
    ]
    assert await values(scorer, programs, tests) == [1.0, 2 / 3, 0.0]


async def test_humaneval_is_scored_by_its_entry_point() -> None:
    test = "def check(candidate):\n    assert candidate([1.0, 2.0, 3.9], 0.3) == False\n    assert candidate([1, 1], 1)"
    program = (
        "```python\nfrom typing import List\ndef has_close_elements(numbers: List[float], threshold: float) -> bool:\n"
        "    return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[i + 1:])\n```"
    )
    scorer = await loaded(entry_point_column="entry_point", sandbox="none")
    assert scorer.required_columns == ("tests", "entry_point")
    completions = [program, "def check(f): pass\ndef has_close_elements(*a): return True", "def other(): pass"]
    got = await result(scorer, completions, test, entry_point="has_close_elements")
    assert [score.value for score in got.scores] == [1.0, 0.0, 0.0]
    [bad] = (await result(scorer, [program], test, entry_point="f); import os; (")).scores
    assert bad.status is Status.INVALID
    await scorer.close()


@pytest.mark.parametrize(
    ("compare", "printed", "is_right"),
    [
        ("lines", "1 2 \n3\n\n", True),
        ("lines", "1  2\n3", False),
        ("tokens", "1\n2   3", True),
        ("tokens", "1 23", False),
        ("exact", "1 2\n3\n", False),
        ("exact", "1 2\n3", True),
        ("float", "1.0000001 2.0\n3.00", True),
        ("float", "1.00001 2\n3", False),
        ("float", "1 2", False),
        ("float", "1 2 x", False),
        ("float", "1 2 4", False),
        ("float", "1 2 inf", False),
        ("float", "1 2 nan", False),
        ("float", "1 2 1_000", False),
        ("unordered", "3\n1 2 \n", True),
        ("unordered", "3\n2 1", False),
        ("unordered", "3\n3\n1 2", False),
    ],
)
async def test_outputs_are_compared_as_asked(scorer: CodeScorer, compare: str, printed: str, is_right: bool) -> None:
    program = f"print({printed!r}, end='')"
    tests = {"inputs": [""], "outputs": ["1 2\n3"]}
    assert await values(sharing(scorer, compare=compare), [program], tests) == [float(is_right)]


async def test_the_right_output_with_the_wrong_exit_code_is_no_pass(scorer: CodeScorer) -> None:
    assert await values(scorer, ["print(2)\nraise SystemExit(1)"], {"inputs": ["1"], "outputs": ["2"]}) == [0.0]


@pytest.mark.parametrize(
    "program",
    ["import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "import os\nos.abort()", "x = bytearray(1 << 40)"],
)
async def test_a_program_cannot_choose_a_failure_over_a_low_score(scorer: CodeScorer, program: str) -> None:
    assert (await result(scorer, [program], TESTS)).scores == (Score(Status.OK, 0.0),)


async def test_after_the_time_limit_no_more_tests_are_run(scorer: CodeScorer) -> None:
    program = "x = int(input())\nwhile x > 1: pass\nprint(x + 1)"
    tests = {"inputs": ["1", *["9"] * 50], "outputs": ["2", *["10"] * 50]}
    began = time.monotonic()
    got = await result(scorer, [program], tests)
    assert time.monotonic() - began < 40, "fifty times the limit is longer"
    assert got.extra["tests_end"] == ["time_limit"]
    assert got.extra["tests_passed"] == ["1/51"]
    assert got.scores[0].value == pytest.approx(1 / 51)


async def test_messages_are_read_as_what_the_assistant_said(scorer: CodeScorer) -> None:
    said = [{"role": "assistant", "content": ADD_ONE}]
    assert await values(scorer, [said], TESTS) == [1.0]


async def test_siblings_may_have_tests_of_their_own(scorer: CodeScorer) -> None:
    columns = [{"tests": {"inputs": ["1"], "outputs": [output]}} for output in ("2", "3")]
    group = Group.of_rows(["p", "p"], [ADD_ONE, ADD_ONE], columns=columns)
    assert [score.value for score in (await scorer.score(group)).scores] == [1.0, 0.0]


async def test_a_sandbox_that_breaks_is_a_failure_and_never_a_number(scorer: CodeScorer) -> None:
    broken = await loaded(sandbox="none")
    assert broken._runners is not None
    broken._runners._prefix = ("/no/such/command",)
    await asyncio.gather(*(runner.close() for runner in broken._runners._idle))
    broken._runners._idle.clear()
    [score] = (await result(broken, [ADD_ONE], TESTS)).scores
    assert (score.status, score.value) == (Status.FAILED, None)
    assert "a runner of programs cannot be started" in score.message
    await broken.close()


async def test_a_program_whose_runner_is_killed_is_run_once_more(scorer: CodeScorer) -> None:
    assert scorer._runners is not None
    await values(scorer, [ADD_ONE, ADD_ONE], TESTS)
    before = {runner.pid for runner in scorer._runners._idle}
    asking = asyncio.create_task(
        values(scorer, ["import time\ntime.sleep(1)\nprint(2)"], {"inputs": [""], "outputs": ["2"]})
    )
    await asyncio.sleep(0.5)
    [busy] = before - {runner.pid for runner in scorer._runners._idle}
    os.kill(busy, signal.SIGKILL)
    assert await asking == [1.0]


async def test_what_programs_say_is_safe_to_send(scorer: CodeScorer) -> None:
    got = await result(scorer, ["raise ValueError('\\ud83d')", "def f(): raise ValueError('\\ud83d')"], "f()")
    json.dumps(dict(got.extra)).encode()
    "".join(got.extra["tests_detail"]).encode()


@pytest.mark.parametrize(
    ("options", "printed", "expected", "is_right"),
    [
        ({}, "0.3333333", "0.333333333", True),
        ({}, "1000000.5", "1000001", True),
        ({}, "1000001", "1000000", False),  # two integers
        ({}, "-0.0", "0", True),
        ({}, "1e-7", "0.0", True),
        ({}, "YES 1.5", "yes 1.5", False),
        ({}, "inf", "5.0", False),
        ({}, "5.0", "inf", False),
        ({}, "Infinity", "inf", True),
        ({}, "9" * 5000, "9" * 5000, True),
        ({"rtol": 0, "atol": 0.01}, "100.02", "100.0", False),
        ({"rtol": 0.01, "atol": 0}, "100.02", "100.0", True),
    ],
)
async def test_floats_are_compared_by_their_tolerance(
    options: dict[str, float], printed: str, expected: str, is_right: bool
) -> None:
    assert same_output(printed, expected, make(compare="float", **options).options) is is_right


async def test_floats_that_a_function_returns_are_compared_by_the_tolerance_unless_exactly(scorer: CodeScorer) -> None:
    tests = {"fn_name": "f", "inputs": [[0.1, 0.2]], "outputs": [[0.3]]}
    programs = ["def f(a, b): return a + b", "def f(a, b): return 0.3001", "def f(a, b): return round(a + b, 3)"]
    assert await values(scorer, programs, tests) == [1.0, 0.0, 1.0]
    assert await values(sharing(scorer, compare="exact"), programs, tests) == [0.0, 0.0, 1.0]
    integers = {"fn_name": "f", "inputs": [[1]], "outputs": [10**9]}
    assert await values(scorer, ["def f(x): return 10 ** 9 + 1", "def f(x): return 1e9"], integers) == [0.0, 1.0]


async def test_why_a_call_failed_is_logged(scorer: CodeScorer) -> None:
    tests = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [2, 3]}
    programs = [
        "def f(x): return x + 1",
        "def f(x): return (x, 'a')",
        "def f(x): return 2 if x == 1 else g(x)",
        "x = 1",
    ]
    got = await result(scorer, programs, tests)
    assert [score.value for score in got.scores] == [1.0, 0.0, 0.5, 0.0]
    assert got.extra["tests_end"] == ["passed", "wrong_answer", "runtime_error", "runtime_error"]
    assert got.extra["tests_detail"] == [
        "",
        'returned {"tuple":[1,"a"]}',
        "NameError: name 'g' is not defined",
        "NameError: name 'f' is not defined",
    ]
    assert "tests/returned" not in got.metrics


async def test_only_programs_for_leetcode_find_its_names(scorer: CodeScorer) -> None:
    called = {"fn_name": "f", "inputs": [[4]], "outputs": [2]}
    plain, solution = "def f(x): return isqrt(x)", "class Solution:\n    def f(self, x): return isqrt(x)"
    assert await values(scorer, [plain, solution], called) == [1.0, 1.0]
    assert await values(scorer, [plain, f"{solution}\nf = Solution().f"], "assert f(4) == 2") == [0.0, 1.0]
    script = {"inputs": ["4"], "outputs": ["2"]}
    assert await values(scorer, ["print(isqrt(int(input())))"], script) == [0.0]
    assert await values(sharing(scorer, common_names=False), [plain, solution], called) == [0.0, 0.0]


async def test_the_tests_of_several_columns_are_taken_together(scorer: CodeScorer) -> None:
    both = sharing(scorer, column=["tests", "more"])
    assert both.required_columns == ("tests", "more")
    more = [{"input": "5", "output": "6", "testtype": "stdin"}]
    assert await values(both, [ADD_ONE, "print(2)"], TESTS, more=more) == [1.0, 0.25]
    [score] = (await result(both, [ADD_ONE], TESTS, more=7)).scores
    assert (score.status, score.message[:21]) == (Status.INVALID, "column 'more' holds 7")
