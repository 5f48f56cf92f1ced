r"""The scorer `code`: does the program in a completion pass the tests of a column?

Owns what a run is worth; `code_tests` reads programs and tests. How a program is run and confined is
`reward_server.sandbox`'s.

The program of a completion:

1. After a `</think>`, only what follows it is read.
2. It is the last fenced block of the languages `python`, `python3`, `py` or none. A block that is not closed (a
   completion that was cut off) is none. Without a block it is the whole text, unless `extract: fenced` asks for one.

The tests, by the shape of the column's value (text that is JSON is read as such):

- `{"inputs": [...], "outputs": [...]}` or `[{"input": ..., "output": ...}, ...]`: each input is given on standard
  input, and standard output has to be the output (`compare` says how). The exit code has to be 0.
- `"assert f(1) == 2"` or a list of such texts, each a test: Python that raises if the program is wrong. With
  `entry_point_column` each is followed by `check(<that function of the program>)`, as HumanEval has it.

Every test gets a process of its own; what one does cannot help or hurt another. After a test that ran into the time
limit the others are not run and count as failed.

What a program cannot do, however it tries:

- see what is expected. Outputs never leave the server. A test runs in a second process: the program's process learns
  the arguments of calls, and nothing else.
- pass by ending early, by printing a verdict, by patching what a test uses, or by an `__eq__`: what it answers travels
  as plain values, which are compared in the test's process. Objects of its own are equal to nothing but themselves. It
  gets copies of the arguments; what it does to them is not seen.
- get a failure instead of a score: all that a program does is worth a number. FAILED and INVALID are left for the
  sandbox and the test. About the reason of its failing it may lie.

What a test should not do: lean on a function of the program's that is not under test, or `eval` what it returned.
Python's own names and its standard library's modules are never the program's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from reward_server.errors import ScorerLoadError
from reward_server.sandbox.attacks import check_that_it_runs, not_stopped
from reward_server.sandbox.backends import BACKENDS
from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End, Limits, Outcome, Plan, Run, SandboxError, UnusableTestError
from reward_server.scorers.base import ExecutorKind, Result, Scorer, ScorerOptions, text_of
from reward_server.scorers.code_tests import CodeTest, normal, program_of, read_tests
from reward_server.types import Group, Score, Status

log = logging.getLogger("reward_server")

_MIB = 1 << 20
_RULES = "1"


class CodeOptions(ScorerOptions):
    """Options of `code`."""

    timeout_s: float = Field(
        300.0,
        gt=0,
        description="Seconds that the programs of one group may take together; beyond it they get no score. A slow "
        "program is not meant to come here: time_limit_s ends it.",
    )
    column: str = Field("tests", description="Column with the tests: inputs and outputs, or Python that asserts.")
    entry_point_column: str | None = Field(
        None, description="Column with the name of the function that a test's `check` is called with, as in HumanEval."
    )
    sandbox: Literal["sandlock", "bubblewrap", "none"] = Field(
        "sandlock",
        description="What confines the programs. none confines nothing: they may do what the server's user may.",
    )
    score: Literal["share", "all"] = Field(
        "share", description="share: the share of tests passed. all: 1 if every test passed, 0 if one did not."
    )
    extract: Literal["auto", "fenced"] = Field(
        "auto", description="auto: the last fenced block, or the whole text without one. fenced: only a block counts."
    )
    compare: Literal["lines", "tokens", "exact"] = Field(
        "lines",
        description="How an output is compared. lines: spaces at the ends of lines and empty last lines do not count. "
        "tokens: only the words count. exact: every character counts.",
    )
    time_limit_s: float = Field(
        4.0,
        gt=0,
        le=600,
        description="Seconds of processor time a test; by the clock, twice that and one second more, where "
        "waiting for a processor does not count.",
    )
    memory_mib: int = Field(512, ge=64, description="Memory of a process, in MiB of address space.")
    max_processes: int = Field(1, ge=1, le=512, description="Processes at once. 1: threads, but no child processes.")
    max_open_files: int = Field(64, ge=16, le=4096, description="Open files at once.")
    output_kib: int = Field(1024, ge=1, description="What a program may print, standard error included, in KiB.")
    disk_mib: int = Field(16, ge=1, description="What a program may write to its temporary folder, in MiB.")
    parallel: int | None = Field(
        None, ge=1, description="Programs that run at once; as many as there are processors if unset."
    )
    python: str | None = Field(None, description="Interpreter that runs the programs; the server's own if unset.")
    site_packages: bool = Field(
        False, description="Whether programs may import what is installed for that interpreter, and read all of it."
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a program: how many tests it passed, and how the first that it did not pass ended."""

    passed: int
    total: int
    end: End
    detail: str = ""


class CodeScorer(Scorer[CodeOptions]):
    """The share of tests that a completion's program passes."""

    Options = CodeOptions
    place = ExecutorKind.LOOP
    deterministic = False  # a program may read the clock or run into a limit on a busy machine

    def __init__(self, options: CodeOptions):
        super().__init__(options)
        self._runners: Runners | None = None
        self._version = ""

    @property
    def version(self) -> str:
        """Of these rules, the sandbox and the interpreter. Known once loaded."""
        return self._version

    @property
    def required_columns(self) -> tuple[str, ...]:
        extra = self.options.entry_point_column
        return (self.options.column, *((extra,) if extra else ()))

    @property
    def concurrency(self) -> int:
        """As many groups as programs: a group waits outside, where its time does not run yet."""
        return self.options.parallel or len(os.sched_getaffinity(0))

    async def load(self) -> None:
        """Raises ScorerLoadError unless the sandbox stops what it must."""
        backend = BACKENDS[self.options.sandbox]
        lack = await asyncio.to_thread(backend.missing)
        if lack is not None:
            raise self._cannot(f"cannot be used: {lack}")
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            log.warning("scorer %r runs programs as root: run the server as a user who owns nothing else", self.name)
        plan, python_version = await asyncio.to_thread(_plan, self.options, backend.name)
        try:
            if self.options.sandbox == "none":
                log.warning(
                    "scorer %r runs what models write WITHOUT A SANDBOX (sandbox: none): a program can read, change "
                    "and send whatever the user of this server can",
                    self.name,
                )
                await check_that_it_runs(plan)
            elif failures := await not_stopped(plan, self.concurrency):
                raise self._cannot(f"does not stop {'; '.join(failures)}")
        except SandboxError as error:
            raise self._cannot(f"does not work on this machine: {error}") from error
        self._runners = Runners(plan, self.concurrency)
        self._version = f"{_RULES}/{backend.version()}/python-{python_version}"

    def _cannot(self, why: str) -> ScorerLoadError:
        return ScorerLoadError(
            f"scorer {self.name!r}: the sandbox {self.options.sandbox!r} {why}. The others are "
            f"{', '.join(name for name in BACKENDS if name != self.options.sandbox)}; 'none' confines nothing"
        )

    async def score(self, group: Group) -> Result:
        tests = [read_tests(value) for value in self.column(group, self.options.column)]
        entry_points = self._entry_points(group)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._score(program_of(text_of(content), self.options.extract), *rest))
                for content, *rest in zip(group.contents(), tests, entry_points, strict=True)
            ]
        return _result(self.name, [task.result() for task in running])

    async def close(self) -> None:
        if self._runners is not None:
            await self._runners.close()

    def _entry_points(self, group: Group) -> list[Any]:
        column = self.options.entry_point_column
        return [None] * len(group) if column is None else self.column(group, column)

    async def _score(
        self, program: str | None, tests: Sequence[CodeTest] | str, entry_point: Any
    ) -> tuple[Score, Verdict]:
        no_verdict = Verdict(0, 0, End.NO_PROGRAM)
        if isinstance(tests, str):
            return Score(Status.INVALID, message=f"column {self.options.column!r} {tests}"), no_verdict
        if not tests:
            return Score(Status.NOT_APPLICABLE), no_verdict
        if program is None:
            return Score(Status.OK, 0.0), Verdict(0, len(tests), End.NO_PROGRAM)
        try:
            verdict = await self._judged_twice(program, [_with_entry_point(test, entry_point) for test in tests])
        except SandboxError as error:
            return Score(Status.FAILED, message=f"the sandbox failed: {error}"), no_verdict
        except UnusableTestError as error:
            return Score(Status.INVALID, message=f"column {self.options.column!r}: {error}"), no_verdict
        share = verdict.passed / verdict.total
        return Score(Status.OK, share if self.options.score == "share" else float(share == 1.0)), verdict

    async def _judged_twice(self, program: str, tests: Sequence[CodeTest]) -> Verdict:
        """Once more if the sandbox failed: what killed a runner may have been somebody else's doing."""
        try:
            return await self._judged(program, tests)
        except SandboxError as error:
            log.warning("scorer %r: %s; the program is run once more", self.name, error)
            return await self._judged(program, tests)

    async def _judged(self, program: str, tests: Sequence[CodeTest]) -> Verdict:
        assert self._runners is not None, "load() comes first"
        passed, first = 0, Outcome(End.PASSED)
        async with self._runners.lease() as runner:
            for test in tests:
                outcome = self._compared(await runner.ask(Run(program, test.stdin, test.code)), test)
                passed += outcome.end is End.PASSED
                if outcome.end is not End.PASSED and first.end is End.PASSED:
                    first = outcome
                if outcome.end is End.TIME_LIMIT or (self.options.score == "all" and first.end is not End.PASSED):
                    break
        return Verdict(passed, len(tests), first.end, first.detail)

    def _compared(self, outcome: Outcome, test: CodeTest) -> Outcome:
        """An end by itself, as a pass or a wrong answer."""
        if outcome.end is not End.EXITED or test.output is None:
            return outcome
        if normal(outcome.stdout, self.options.compare) == normal(test.output, self.options.compare):
            return Outcome(End.PASSED)
        return Outcome(End.WRONG_ANSWER, detail=f"printed {outcome.stdout.strip()[:80]!r}")


def _with_entry_point(test: CodeTest, entry_point: Any) -> CodeTest:
    if entry_point is None or test.code is None:
        return test
    if not (isinstance(entry_point, str) and entry_point.isidentifier()):
        raise UnusableTestError(f"the entry point {entry_point!r:.80} is no name of a function")
    return CodeTest(code=f"{test.code}\n\ncheck(__program__.{entry_point})\n")


def _result(name: str, scored: Sequence[tuple[Score, Verdict]]) -> Result:
    """With how each program's first failing run ended, and the share of each end in the group."""
    verdicts = [verdict if score.status is Status.OK else None for score, verdict in scored]
    ends = [verdict.end for verdict in verdicts if verdict is not None]
    metrics = {f"{name}/{end.value}": ends.count(end) / len(ends) for end in End if end is not End.EXITED and ends}
    extra = {
        f"{name}_end": [verdict and verdict.end.value for verdict in verdicts],
        f"{name}_passed": [verdict and f"{verdict.passed}/{verdict.total}" for verdict in verdicts],
        f"{name}_detail": [verdict and verdict.detail for verdict in verdicts],
    }
    return Result(tuple(score for score, _ in scored), metrics, extra)


# ---------------------------------------------------------------------------------------------------------- the machine


def _plan(options: CodeOptions, backend: str) -> tuple[Plan, str]:
    """How programs are run, and the version of their Python. Raises ScorerLoadError for an interpreter that is none."""
    python = options.python or (sys.executable if options.site_packages else os.path.realpath(sys.executable))
    flags = ("-I", "-B") if options.site_packages else ("-I", "-S", "-B")
    question = "import os, platform, sys; print(platform.python_version(), sys.prefix, sys.base_prefix, sep='\\n')"
    try:
        answer = subprocess.run(
            [python, *flags, "-c", question], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ScorerLoadError(
            f"scorer {options.name!r}: python {python!r} does not run: {error}; name an interpreter that does"
        ) from error
    version, *prefixes = answer.stdout.splitlines()
    limits = Limits(
        options.time_limit_s,
        options.memory_mib * _MIB,
        options.max_processes,
        options.max_open_files,
        options.output_kib << 10,
        options.disk_mib * _MIB,
    )
    return Plan(backend, (python, *flags), tuple(dict.fromkeys(prefixes)), limits), version
