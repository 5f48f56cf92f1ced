"""The scorer `code`: which values of a column are which tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reward_server.sandbox import calls
from reward_server.scorers.code import CodeScorer
from reward_server.scorers.code.shapes import CodeTest, ShapeError, entry_point_of, read_tests
from reward_server.types import Score, Status
from tests.support.code import ADD_ONE, result

pytestmark = pytest.mark.asyncio(loop_scope="module")


def call(arguments: list[Any], *values: Any) -> CodeTest:
    return CodeTest(call=calls.request("f", arguments), values=values)


@pytest.mark.parametrize(
    ("value", "tests"),
    [
        ({"inputs": ["1"], "outputs": ["2"]}, [CodeTest("1", "2")]),
        (json.dumps({"inputs": ["1"], "outputs": ["2"]}), [CodeTest("1", "2")]),
        ([{"input": "1", "output": "2", "testtype": "stdin"}], [CodeTest("1", "2")]),
        ({"inputs": [["1", "2"]], "outputs": [[3]]}, [CodeTest("1\n2", "3")]),
        ("assert f(1) == 2", [CodeTest(code="assert f(1) == 2")]),
        (["assert a", "assert b"], [CodeTest(code="assert a"), CodeTest(code="assert b")]),
        ("[x] = f()", [CodeTest(code="[x] = f()")]),
        (None, []),
        ("", []),
        ([], []),
        ({"inputs": [], "outputs": []}, []),
        ({"input": ["1"], "output": ["2"]}, [CodeTest("1", "2")]),
        ({"inputs": ["1"], "outputs": ["2"], "fn_name": None}, [CodeTest("1", "2")]),
        (json.dumps(json.dumps([{"input": "1", "output": "2"}])), [CodeTest("1", "2")]),
        ([{"input": "1", "output": "2", "type": "stdin_stdout", "fn_name": None}], [CodeTest("1", "2")]),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [2]}, [call([1], 2)]),
        ({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[2], [[3]]]}, [call([1], [2], 2), call([2], [[3]], [3])]),
        ({"fn_name": "f", "inputs": [[1], [2]], "outputs": [[2], [3, 4]]}, [call([1], [2]), call([2], [3, 4])]),
        ({"fn_name": "f", "inputs": ['1\n"a"'], "outputs": ["[2]"]}, [call([1, "a"], [2])]),
        (
            {"fn_name": "f", "inputs": [[{"1": {"-2": 3}, "2": {"x": 1}}]], "outputs": [0]},
            [call([{1: {-2: 3}, 2: {"x": 1}}], 0)],
        ),
        ('{"fn_name": "f", "inputs": [[' + "9" * 5000 + ']], "outputs": [1]}', [call([10**5000 - 1], 1)]),
        (
            [{"input": "1\n2\n", "output": "3", "testtype": "functional", "metadata": {"func_name": "f"}}],
            [call([1, 2], 3)],
        ),
        ([{"input": [1], "output": [3], "type": "function_call", "fn_name": "f"}], [call([1], [3], 3)]),
    ],
)
async def test_tests_are_read_by_the_shape_of_their_column(value: Any, tests: list[CodeTest]) -> None:
    assert read_tests(value) == tests


@pytest.mark.parametrize(
    "value",
    [
        3, "4", "hello", [1], ["1", "2"], ["assert a", None], [{"input": "1"}], {"inputs": ["1"]}, {"tests": ["1"]},
        {"inputs": ["1"], "outputs": []}, {"inputs": ["1"], "outputs": ["2"], "kind": "x"},
        {"inputs": "1", "outputs": "2"},
        {"inputs": [None], "outputs": ["1"]}, {"inputs": [{"a": 1}], "outputs": ["1"]},
        [{"input": "1", "output": "2", "testtype": "interactive"}], [{"input": "1", "output": "2", "weight": 3}],
        {"fn_name": "f", "inputs": [1], "outputs": [2]}, {"fn_name": "f", "inputs": ["x y"], "outputs": ["1"]},
        {"fn_name": "f()", "inputs": [[1]], "outputs": [2]}, {"fn_name": 3, "inputs": [[1]], "outputs": [2]},
        {"language": "cpp", "test_cases": [{"input": "1", "output": "2"}]},
        "def check(candidate):\n    assert candidate(1)",
    ],
)  # fmt: skip
async def test_what_is_no_test_is_invalid_and_named(scorer: CodeScorer, value: Any) -> None:
    [score] = (await result(scorer, [ADD_ONE], value)).scores
    assert score.status is Status.INVALID
    assert score.message.startswith("column 'tests' holds ")


async def test_without_tests_the_scorer_does_not_apply(scorer: CodeScorer) -> None:
    assert (await result(scorer, [ADD_ONE], None)).scores == (Score(Status.NOT_APPLICABLE),)


async def test_a_test_that_is_no_python_is_no_programs_fault(scorer: CodeScorer) -> None:
    [score] = (await result(scorer, ["x = 1"], "assert x ==")).scores
    assert score.status is Status.INVALID
    assert score.message == "column 'tests': the test is no Python: invalid syntax (test.py, line 1)"


async def test_the_name_of_the_function_comes_as_text_or_in_an_object() -> None:
    named = ["f", {"func_name": "f"}, '{"func_name": "f"}', {"fn_name": "f", "other": 1}, "Solution.f", "Solution().f"]
    assert [entry_point_of(value) for value in named] == ["f"] * 6
    assert [entry_point_of(value) for value in (None, "", {}, "{}", {"difficulty": "easy"}, {"func_name": None})] == [
        None
    ] * 6
    for value in (3, "f(); import os", "a b", ["f"], {"func_name": "f;"}, "os.system"):
        with pytest.raises(ShapeError, match="no name of a function"):
            entry_point_of(value)


async def test_what_goes_before_a_test_that_asserts_is_text_or_a_list_of_texts() -> None:
    for setup, before in (
        ("import math", "import math\n"),
        (["a = 1", "b = 2"], "a = 1\nb = 2\n"),
        (None, ""),
        ([], ""),
    ):
        assert read_tests("assert f()", setup=setup) == [CodeTest(code=f"{before}assert f()")]
    assert read_tests("assert f()", setup='["import re"]') == [CodeTest(code="import re\nassert f()")]
    with pytest.raises(ShapeError, match="neither text nor a list of texts"):
        read_tests("assert f()", setup=[1])


async def test_check_is_called_once_and_only_where_it_is_defined() -> None:
    check = "def check(candidate):\n    assert candidate(1)"
    [test] = read_tests(check, "f")
    assert test.code == f"{check}\n\ncheck(__find__('f'))\n"
    assert read_tests(f"{check}\ncheck(f)", "f") == [CodeTest(code=f"{check}\ncheck(f)")]
    assert read_tests("assert f(1)", "f") == [CodeTest(code="assert f(1)")]
