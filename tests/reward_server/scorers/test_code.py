r"""The scorer `code`: what is the program, what is a test, and what a run is worth."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import pytest_asyncio

from reward_server.client import RewardClient
from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError, ScorerLoadError
from reward_server.launch import ServerProcess
from reward_server.sandbox.backends import BACKENDS, Unconfined
from reward_server.scorers.base import Result
from reward_server.scorers.code import CodeScorer
from reward_server.scorers.code.programs import program_of
from reward_server.scorers.code.shapes import CodeTest, read_tests
from reward_server.scorers.registry import build, parse_options
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Group, Score, Status
from tests.support.builders import make_group
from tests.support.processes import descendants, is_alive, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
LACK = BACKENDS["sandlock"].missing()
needs_sandlock = pytest.mark.skipif(LACK is not None, reason=str(LACK))  # a kernel before Linux 6.12

ADD_ONE = "```python\nprint(int(input()) + 1)\n```"
TESTS = {"inputs": ["1", "41", "-1"], "outputs": ["2", "42", "0"]}


def make(**options: Any) -> CodeScorer:
    scorer = build(parse_options({"type": "code", "name": "tests", "time_limit_s": 0.5, **options}))
    assert isinstance(scorer, CodeScorer)
    return scorer


async def loaded(**options: Any) -> CodeScorer:
    scorer = make(**options)
    await scorer.load()
    return scorer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scorer() -> AsyncIterator[CodeScorer]:
    if LACK is not None:
        pytest.skip(LACK)
    scorer = await loaded()
    yield scorer
    await scorer.close()


def sharing(scorer: CodeScorer, **options: Any) -> CodeScorer:
    """A scorer of other options about scoring, in the same sandbox."""
    other = make(**options)
    other._runners = scorer._runners
    return other


async def result(scorer: CodeScorer, completions: Sequence[Any], tests: Any, **columns: Any) -> Result:
    return await scorer.score(make_group(completions, columns={"tests": tests, **columns}))


async def values(scorer: CodeScorer, completions: Sequence[Any], tests: Any, **columns: Any) -> list[float | None]:
    return [score.value for score in (await result(scorer, completions, tests, **columns)).scores]


# ---------------------------------------------------------------------------------------------------------- the program


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("so:\n```python\na\n```\ndone", "a\n"),
        ("```\na\n```", "a\n"),
        ("```py\na\n```\nbetter:\n```python3\nb\n```", "b\n"),
        ("```python\na\n```\nrun it:\n```bash\npython a.py\n```", "a\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("````python\n```\n````", "```\n"),
        ("1. do\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b\n"),
        ("<think>```python\na\n```</think>\n```python\nb\n```", "b\n"),
        ("```python\na\n```\nno:\n```python\nb, cut off", "a\n"),
        ("print(1)", "print(1)"),
        ("```python\ncut off", None),
        ("```bash\nls\n```", None),
        ("```python\n\n```", "\n"),
        ("", None),
    ],
)
async def test_the_program_is_the_last_closed_block_of_python_or_all_of_it(text: str, program: str | None) -> None:
    assert program_of(text) == program


async def test_where_a_block_is_asked_for_text_is_no_program() -> None:
    assert program_of("print(1)", "fenced") is None
    assert program_of("```python\na\n```", "fenced") == "a\n"


async def test_finding_the_program_takes_time_in_proportion_to_the_text() -> None:
    began = time.monotonic()
    assert program_of("```a\n" * 200_000) is None
    assert time.monotonic() - began < 5


# ------------------------------------------------------------------------------------------------------------ the tests


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
    ],
)
async def test_tests_are_read_by_the_shape_of_their_column(value: Any, tests: list[CodeTest]) -> None:
    assert read_tests(value) == tests


@pytest.mark.parametrize("value", [3, {"inputs": ["1"]}, {"inputs": ["1"], "outputs": []}, [1], [{"input": "1"}]])
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


# --------------------------------------------------------------------------------------------------- what it is worth


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


# -------------------------------------------------------------------------------------------------------- the machine


async def test_the_version_names_sandbox_and_interpreter(scorer: CodeScorer) -> None:
    assert scorer.version.startswith("1/sandlock-0.")
    assert "/python-3." in scorer.version
    assert not scorer.deterministic, "a busy machine may change a score: none is to be kept"


@needs_sandlock
async def test_a_sandbox_that_stops_nothing_is_refused_with_what_it_lets_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BACKENDS, "sandlock", Unconfined())
    with pytest.raises(ScorerLoadError) as refusal:
        await loaded()
    message = str(refusal.value)
    assert message.startswith("scorer 'tests': the sandbox 'sandlock' does not stop reading files (exited: ")
    for what in ("writing files", "changing files", "network", "unix sockets", "fork bombs"):
        assert f"; {what} (" in message
    assert message.endswith("The others are bubblewrap, none; 'none' confines nothing")


async def test_without_a_sandbox_the_log_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "reward_server"):
        scorer = await loaded(sandbox="none")
    assert "WITHOUT A SANDBOX" in caplog.text
    await scorer.close()


async def test_a_tool_that_is_missing_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ScorerLoadError, match=r"'bubblewrap' cannot be used: there is no bwrap: apt-get install"):
        await loaded(sandbox="bubblewrap")


async def test_an_interpreter_that_does_not_run_is_named() -> None:
    with pytest.raises(ScorerLoadError, match=r"python '/no/such/python' does not run"):
        await loaded(python="/no/such/python")


async def test_an_unknown_sandbox_is_refused_by_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"sandbox.*'docker'"):
        config_from_mapping({"scorers": [{"type": "code", "name": "t", "sandbox": "docker"}]})


async def test_installed_packages_are_there_only_if_asked_for(scorer: CodeScorer) -> None:
    program = "import pydantic\nprint(pydantic.__name__)"
    tests = {"inputs": [""], "outputs": ["pydantic"]}
    assert await values(scorer, [program], tests) == [0.0]
    wide = await loaded(site_packages=True, sandbox="none")
    assert await values(wide, [program], tests) == [1.0]
    await wide.close()


# -------------------------------------------------------------------------------------------------------- the service


async def test_a_group_that_outlasts_its_time_is_a_timeout_and_its_programs_end() -> None:
    config = {"type": "code", "name": "tests", "sandbox": "none", "timeout_s": 1, "time_limit_s": 30, "parallel": 1}
    scorers = ScorerSet(config_from_mapping({"scorers": [config]}))
    await scorers.load()
    scores = await scorers.score(make_group(["import time\ntime.sleep(60)"], columns={"tests": TESTS}))
    assert scores.scorers[0].scores[0].status is Status.TIMEOUT
    await scorers.close()


@needs_sandlock
@pytest.mark.slow
async def test_a_server_scores_programs_and_takes_them_with_it(serve: Callable[..., ServerProcess]) -> None:
    server = serve({"type": "code", "name": "tests", "time_limit_s": 20, "max_processes": 4})
    hanging = "import os, time\nif os.fork() == 0:\n    os.setsid()\ntime.sleep(120)"

    def ask(completions: list[str], timeout_s: float) -> Any:
        with RewardClient(server.endpoint) as client:
            return client.score(make_group(completions, columns={"tests": TESTS}), timeout_s=timeout_s)

    scores = await asyncio.to_thread(ask, [ADD_ONE, "print(1)"], 60)
    assert [score.value for score in scores.scorers[0].scores] == [1.0, 0.0]
    asking = asyncio.get_running_loop().run_in_executor(None, ask, [hanging], 4)
    await asyncio.to_thread(wait_until, lambda: len(descendants(server.pid)) >= 5, 20)
    processes = descendants(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    assert await asyncio.to_thread(wait_until, lambda: not any(map(is_alive, processes)), 10)
    with pytest.raises(Exception):  # noqa: B017, PT011 - nobody answers any more
        await asking
