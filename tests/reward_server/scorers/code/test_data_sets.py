"""The data sets of the field as they come: rows made in the shape of each, scored by a real server.

For each: a group of right programs is worth 1 each, a group of wrong ones 0 each. No row is copied from a data set.
"""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.launch import launch_server
from reward_server.sandbox.backends import BACKENDS
from reward_server.types import ScorerScores, Status
from tests.support.builders import make_group

SANDBOX = "sandlock" if BACKENDS["sandlock"].missing() is None else "none"

SCORERS: dict[str, dict[str, Any]] = {
    "apps": {"column": "input_output"},
    "code_contests": {"sandbox": "none", "column": ["public_tests", "private_tests", "generated_tests"]},
    "live_code_bench": {"sandbox": "none", "column": "public_test_cases", "entry_point_column": "metadata"},
    "human_eval": {"sandbox": "none", "column": "test", "entry_point_column": "entry_point"},
    "mbpp": {"sandbox": "none", "column": "test_list", "setup_column": "test_setup_code"},
    "plus": {"column": "test", "entry_point_column": "entry_point", "site_packages": True, "time_limit_s": 20},
}


@pytest.fixture(scope="module")
def client() -> Iterator[RewardClient]:
    """Of one server with a scorer a data set. Some run without a sandbox, since each sandbox is attacked first."""
    common = {"type": "code", "sandbox": SANDBOX}
    scorers = [{**common, "name": name, "time_limit_s": 2, **options} for name, options in SCORERS.items()]
    server = launch_server({"scorers": scorers, "workers": 1}, timeout_s=120)
    with RewardClient(server.endpoint) as client:
        yield client
    server.stop()


def scored(
    client: RewardClient, scorer: str, completions: Sequence[str], prompt: Any = "p", **row: Any
) -> ScorerScores:
    group = make_group(list(completions), prompt=prompt, columns=row, scorers=(scorer,))
    [scores] = client.score(group, timeout_s=120).scorers
    return scores


def values(scores: ScorerScores) -> list[float | None]:
    assert [score.message for score in scores.scores] == [""] * len(scores.scores)
    return [score.value for score in scores.scores]


def fenced(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\nIt runs in linear time."


@dataclass
class Case:
    """A row of a data set, programs that are right, and programs that are wrong."""

    scorer: str
    row: dict[str, Any]
    right: Sequence[str]
    wrong: Sequence[str]
    prompt: Any = "p"


ADD = "def add(a, b):\n    return a + b"
ADD_METHOD = "class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a + b"
SUBTRACT = "def add(a, b):\n    return a - b"
SUM_LINES = "n = int(input())\nprint(sum(int(input()) for _ in range(n)))"

CASES = {
    "apps by standard input": Case(
        "apps",
        {"input_output": json.dumps({"inputs": ["2\n1\n2\n", "1\n5\n"], "outputs": ["3\n", "5\n"]})},
        [fenced(SUM_LINES), fenced(f"import sys\n{SUM_LINES}\nexit()"), fenced(f"{SUM_LINES}\nquit(0)")],
        [fenced("print(3)\nexit(1)"), fenced("exit()"), fenced("print(0)")],
    ),
    "apps by lists of lines": Case(
        "apps",
        {"input_output": json.dumps({"inputs": [["2", "1", "2"]], "outputs": [["3"]]})},
        [fenced(SUM_LINES)],
        [fenced("print(4)")],
    ),
    "apps by a function's name": Case(
        "apps",
        {"input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], [5, -5]], "outputs": [[3], [0]]})},
        [fenced(ADD), fenced(ADD_METHOD), fenced("add = lambda a, b: a + b"), fenced("def add(*xs): return sum(xs)")],
        [fenced(SUBTRACT), fenced("print(3)"), fenced("def add(a, b): return None"), fenced("import os; os._exit(0)")],
    ),
    "taco by a function's name, as an object": Case(
        "apps",
        {"input_output": {"fn_name": "pairs", "inputs": [[[3, 1]], [[]]], "outputs": [[[1, 3], 2], [[], 0]]}},
        [fenced("def pairs(xs): return sorted(xs), len(xs)"), fenced("def pairs(xs): return [sorted(xs), len(xs)]")],
        [fenced("def pairs(xs): return sorted(xs)"), fenced("def pairs(xs): return xs[::-1], -1")],
    ),
    "apps with an object of integer keys": Case(
        "apps",
        {"input_output": {"fn_name": "inverted", "inputs": [[{"1": "a", "2": "b"}]], "outputs": [[{"a": 1, "b": 2}]]}},
        [fenced("def inverted(d):\n    return {v: k for k, v in d.items()}")],
        [fenced("def inverted(d): return d"), fenced("def inverted(d): return {v: str(k) for k, v in d.items()}")],
    ),
    "prime, with text for arguments": Case(
        "apps",
        {"input_output": {"fn_name": "add", "inputs": ["1\n2"], "outputs": ["3"]}},
        [fenced(ADD), fenced(ADD_METHOD)],
        [fenced(SUBTRACT), fenced("print(int(input()) + int(input()))")],
    ),
    "verifiable-coding-problems": Case(
        "apps",
        {
            "input_output": {
                "language": "python",
                "test_cases": [{"fn_name": None, "input": "2\n1\n2", "output": "3", "type": "stdin_stdout"}],
            }
        },
        [fenced(SUM_LINES)],
        [fenced("print(4)")],
    ),
    "code_contests, three columns of parallel lists": Case(
        "code_contests",
        {
            "public_tests": {"input": ["1\n7\n"], "output": ["7\n"]},
            "private_tests": {"input": ["2\n1\n1\n"], "output": ["2\n"]},
            "generated_tests": {"input": [], "output": []},
        },
        [fenced(SUM_LINES)],
        [fenced("print('no')")],
    ),
    "live_code_bench by standard input": Case(
        "live_code_bench",
        {
            "public_test_cases": json.dumps([{"input": "2\n1\n2\n", "output": "3\n", "testtype": "stdin"}]),
            "metadata": "{}",
        },
        [fenced(SUM_LINES)],
        [fenced("print(4)")],
    ),
    "live_code_bench by a method": Case(
        "live_code_bench",
        {
            "public_test_cases": json.dumps(
                [
                    {"input": '[1, 2, 3]\n"max"', "output": "3", "testtype": "functional"},
                    {"input": '[4, 5]\n"min"', "output": "4", "testtype": "functional"},
                ]
            ),
            "metadata": json.dumps({"func_name": "pick"}),
        },
        [
            fenced(
                "class Solution:\n    def pick(self, nums: List[int], how: Optional[str]) -> int:\n"
                "        return max(nums) if how == 'max' else min(nums)"
            ),
            fenced("def pick(nums, how):\n    heapify(nums)\n    return nums[0] if how == 'min' else max(nums)"),
        ],
        [fenced("class Solution:\n    def pick(self, nums, how):\n        return [max(nums)]"), fenced("print(3)")],
    ),
    "human_eval, whole functions": Case(
        "human_eval",
        {
            "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1.0, 2.5]) == 3.5\n"
            "    assert candidate([]) == 0\n    assert double(candidate([2.0])) == 4.0\n",
            "entry_point": "total",
        },
        [
            fenced("def total(xs: List[float]) -> float:\n    return sum(xs)"),
            fenced("from __future__ import annotations\nimport math\ndef total(xs):\n    return math.fsum(xs)"),
        ],
        [fenced("def total(xs):\n    return 0"), fenced("def check(f): pass\ndef total(xs): return True"), ""],
        prompt="from typing import List\n\n\ndef double(x: float) -> float:\n    return 2 * x\n\n\n"
        'def total(xs: List[float]) -> float:\n    """ The sum of xs.\n    >>> total([1.0, 2.0])\n    3.0\n    """\n',
    ),
    "human_eval, bodies of functions": Case(
        "human_eval",
        {"test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
         "entry_point": "total"},
        [
            "    s = 0\n    for x in xs:\n        s += x\n    return s\n",
            "s = 0\n    for x in xs:\n        s += x\n    return s",
            fenced("s = 0\nfor x in xs:\n    s += x\nreturn s"),
            "    return sum(xs)\n\n\nprint(total([1, 2]))\nno Python any more",
            "return sum(xs)",
        ],
        ["    return 0", "    return sum(xs) + 1", "    no Python"],
        prompt='def total(xs):\n    """ The sum of xs. """\n',
    ),
    "human_eval, from a chat": Case(
        "human_eval",
        {"test": "def check(candidate):\n    assert candidate(2) == 4\n", "entry_point": "double"},
        [fenced("def double(x):\n    return FACTOR * x"), "    return FACTOR * x"],
        [fenced("def double(x):\n    return x")],
        prompt=[
            {"role": "user", "content": 'Complete:\n```python\nFACTOR = 2\ndef double(x):\n    """ Twice. """\n```'}
        ],
    ),
    "LeetCodeDataset, check of a method": Case(
        "human_eval",
        {"test": "def check(candidate):\n    assert candidate(a=1, b=2) == 3\n", "entry_point": "Solution().add"},
        [fenced("class Solution:\n    def add(self, a: Optional[int], b: int) -> int:\n        return a + b")],
        [fenced("class Solution:\n    def add(self, a, b):\n        return a - b")],
    ),
    "mbpp": Case(
        "mbpp",
        {
            "test_list": ["assert area(3) == 9", "assert math.isclose(area(0.5), 0.25)"],
            "test_setup_code": "import math",
        },
        [fenced("def area(a):\n    return a * a"), fenced("def area(a):\n    return a ** 2")],
        [fenced("def area(a):\n    return -1"), fenced("def other(a):\n    return a * a")],
    ),
    "mbpp with objects of the program's, as text of JSON": Case(
        "mbpp",
        {
            "test_list": json.dumps(["assert height(root) == 2", "assert height(Node(1)) == 1"]),
            "test_setup_code": "root = Node(1)\nroot.left = Node(2)\n",
        },
        [
            fenced(
                "class Node:\n    def __init__(self, data):\n        self.left = self.right = None\n"
                "def height(n):\n    return 0 if n is None else 1 + max(height(n.left), height(n.right))"
            )
        ],
        [fenced("class Node:\n    def __init__(self, data):\n        self.left = None\ndef height(n):\n    return 3")],
    ),
    "human_eval_plus and mbpp_plus, whose tests import numpy": Case(
        "plus",
        {
            "test": "import numpy as np\n\ndef is_floats(x):\n    return isinstance(x, float)\n\n"
            "def assertion(out, exp, atol):\n    if atol == 0 and is_floats(exp):\n        atol = 1e-6\n"
            "    if out != exp and atol != 0:\n        np.testing.assert_allclose(out, exp, rtol=1e-07, atol=atol)\n"
            "    else:\n        assert out == exp\n\n"
            "def check(candidate):\n    inputs = [[[1, 2]], [[0.1, 0.2]]]\n    results = [3, 0.3]\n"
            "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 0)\n",
            "entry_point": "total",
        },
        [fenced("def total(xs):\n    return sum(xs)"), fenced("import numpy\ntotal = numpy.sum")],
        [fenced("def total(xs):\n    return 3"), fenced("def total(xs):\n    return None")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_right_programs_are_worth_one_and_wrong_ones_nothing(client: RewardClient, name: str) -> None:
    case = CASES[name]
    assert values(scored(client, case.scorer, case.right, case.prompt, **case.row)) == [1.0] * len(case.right)
    assert values(scored(client, case.scorer, case.wrong, case.prompt, **case.row)) == [0.0] * len(case.wrong)


COMPRESSED = base64.b64encode(zlib.compress(pickle.dumps(json.dumps([{"input": "1", "output": "2"}])))).decode()


@pytest.mark.parametrize(
    ("scorer", "row", "message"),
    [
        (
            "live_code_bench",
            {"public_test_cases": COMPRESSED, "metadata": "{}"},
            "a compressed pickle (LiveCodeBench's private_test_cases), and nothing is unpickled here. Convert",
        ),
        (
            "live_code_bench",
            {"public_test_cases": [{"input": "1", "output": "2", "testtype": "functional"}], "metadata": "{}"},
            "a call of a function without its name: set entry_point_column",
        ),
        (
            "apps",
            {"input_output": {"inputs": ["1"], "outputs": ["2"], "checker": "any"}},
            "holds {'inputs': ['1'], 'outputs': ['2'], 'checker': 'any'}, which is no shape of tests",
        ),
        (
            "human_eval",
            {"test": "def check(candidate):\n    assert candidate(1)", "entry_point": None},
            "which defines check and does not call it: set entry_point_column",
        ),
        (
            "human_eval",
            {"test": "import numpy as np\ndef check(candidate):\n    assert candidate(1)", "entry_point": "f"},
            "No module named 'numpy' (it is installed here, and site_packages: true would allow it)",
        ),
    ],
)
def test_what_is_not_understood_is_invalid_and_never_a_number(
    client: RewardClient, scorer: str, row: dict[str, Any], message: str
) -> None:
    [score] = scored(client, scorer, [fenced("def f(x):\n    return x")], **row).scores
    assert (score.status, score.value) == (Status.INVALID, None)
    assert message in score.message
