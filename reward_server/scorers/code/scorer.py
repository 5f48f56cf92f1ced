"""The scorer `code`: runs the programs of a group, and says what they are worth.

Owns the scores and their reasons. What is a program and what a test, `programs` and `shapes` read; how a program is run
and confined is `reward_server.sandbox`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_server.errors import ScorerLoadError
from reward_server.sandbox import calls
from reward_server.sandbox.attacks import check_that_it_runs, not_stopped
from reward_server.sandbox.backends import BACKENDS
from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End, Outcome, Run, SandboxError, UnusableTestError
from reward_server.scorers.base import ExecutorKind, Result, Scorer, text_of
from reward_server.scorers.code.machine import Machine, machine
from reward_server.scorers.code.options import CodeOptions
from reward_server.scorers.code.outputs import closeness, same_output
from reward_server.scorers.code.programs import Program, completed, program_of, stub_of
from reward_server.scorers.code.shapes import CodeTest, ShapeError, entry_point_of, read_tests
from reward_server.types import Group, Score, Status

log = logging.getLogger("reward_server")

_RULES = "2"
_SOLUTION = re.compile(r"^class Solution\b", re.MULTILINE)
_NOT_AN_END = (End.EXITED, End.RETURNED)  # what was printed or returned makes it another


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many tests a program passed, and how the first test ended that it did not pass."""

    passed: int
    total: int
    end: End
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    """What a completion's row says: its tests, the function under test, and the code that a completion goes on with."""

    tests: Sequence[CodeTest]
    entry_point: str | None
    stub: str


class CodeScorer(Scorer[CodeOptions]):
    """The share of tests that a completion's program passes."""

    Options = CodeOptions
    place = ExecutorKind.LOOP
    deterministic = False  # a program may read the clock or run into a limit on a busy machine

    def __init__(self, options: CodeOptions):
        super().__init__(options)
        self._runners: Runners | None = None
        self._machine: Machine | None = None
        self._version = ""

    @property
    def version(self) -> str:
        """The versions of these rules, the sandbox and the interpreter. Known once loaded."""
        return self._version

    @property
    def required_columns(self) -> tuple[str, ...]:
        options = self.options
        others = (options.entry_point_column, options.setup_column, options.prompt_column)
        return (*options.columns, *(column for column in others if column is not None))

    @property
    def sample_columns(self) -> Mapping[str, Any]:
        empty = dict.fromkeys(self.required_columns)
        return {**empty, self.options.columns[0]: {"inputs": ["4"], "outputs": ["4"]}}

    @property
    def notes(self) -> tuple[str, ...]:
        note = self._machine.note() if self._machine is not None else None
        return (note,) if note else ()

    @property
    def concurrency(self) -> int:
        """As many groups as programs: further groups wait outside, where their time limit does not run yet."""
        return self.options.parallel or len(os.sched_getaffinity(0))

    async def load(self) -> None:
        """Raises ScorerLoadError unless the sandbox stops every attack that it must stop."""
        backend = BACKENDS[self.options.sandbox]
        lack = await asyncio.to_thread(backend.missing)
        if lack is not None:
            raise self._cannot(f"cannot be used: {lack}")
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            log.warning("scorer %r runs programs as root: run the server as a user who owns nothing else", self.name)
        self._machine = await asyncio.to_thread(machine, self.options, backend.name)
        plan = self._machine.plan
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
        self._version = f"{_RULES}/{backend.version()}/python-{self._machine.python_version}"

    def _cannot(self, why: str) -> ScorerLoadError:
        return ScorerLoadError(
            f"scorer {self.name!r}: the sandbox {self.options.sandbox!r} {why}. The others are "
            f"{', '.join(name for name in BACKENDS if name != self.options.sandbox)}; 'none' confines nothing"
        )

    async def score(self, group: Group) -> Result:
        rows = self._rows(group)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._score(text_of(content), row))
                for content, row in zip(group.contents(), rows, strict=True)
            ]
        return _result(self.name, [task.result() for task in running])

    async def close(self) -> None:
        if self._runners is not None:
            await self._runners.close()

    def _rows(self, group: Group) -> list[_Row | str]:
        """A row for each completion; text that says what is wrong with its columns. Equal rows are read once."""
        values = {column: self.column(group, column) for column in self.required_columns}
        read: dict[tuple[int, ...], _Row | str] = {}
        rows = []
        for prompt, *row in zip(group.prompts(), *values.values(), strict=True):
            key = tuple(map(id, (prompt, *row)))
            if key not in read:
                read[key] = self._row(dict(zip(values, row, strict=True)), prompt)
            rows.append(read[key])
        return rows

    def _row(self, values: Mapping[str, Any], prompt: Any) -> _Row | str:
        options = self.options
        column = ""
        try:
            column = options.entry_point_column or ""
            entry_point = entry_point_of(values.get(column)) or options.entry_point
            setup = values.get(options.setup_column or "")
            tests: list[CodeTest] = []
            for column in options.columns:
                tests += read_tests(values[column], entry_point, setup)
        except ShapeError as error:
            return f"column {column!r} {error}"
        stub = values[options.prompt_column] if options.prompt_column else prompt
        has_asserts = any(test.code is not None for test in tests)
        return _Row(tests, entry_point, stub_of(stub or "", entry_point) if entry_point and has_asserts else "")

    async def _score(self, text: str, row: _Row | str) -> tuple[Score, Verdict]:
        no_verdict = Verdict(0, 0, End.NO_PROGRAM)
        if isinstance(row, str):
            return Score(Status.INVALID, message=row), no_verdict
        if not row.tests:
            return Score(Status.NOT_APPLICABLE), no_verdict
        text_of_program = program_of(text, self.options.extract)
        if text_of_program is None:
            return Score(Status.OK, 0.0), Verdict(0, len(row.tests), End.NO_PROGRAM)
        program = completed(text_of_program, row.stub, row.entry_point or "")
        try:
            verdict = await self._judged_twice(program, row.tests)
        except SandboxError as error:
            return Score(Status.FAILED, message=f"the sandbox failed: {error}"), no_verdict
        except UnusableTestError as error:
            message = f"column {self.options.columns[0]!r}: {error}{self._hint(str(error))}"
            return Score(Status.INVALID, message=message), no_verdict
        share = verdict.passed / verdict.total
        return Score(Status.OK, share if self.options.score == "share" else float(share == 1.0)), verdict

    async def _judged_twice(self, program: Program, tests: Sequence[CodeTest]) -> Verdict:
        """Runs the tests once more if the sandbox failed, since something else may have killed the runner."""
        try:
            return await self._judged(program, tests)
        except SandboxError as error:
            log.warning("scorer %r: %s; the program is run once more", self.name, error)
            return await self._judged(program, tests)

    async def _judged(self, program: Program, tests: Sequence[CodeTest]) -> Verdict:
        assert self._runners is not None, "load() comes first"
        passed, first = 0, Outcome(End.PASSED)
        async with self._runners.lease() as runner:
            for test in tests:
                outcome = self._compared(await runner.ask(self._run(program, test)), test)
                passed += outcome.end is End.PASSED
                if outcome.end is not End.PASSED and first.end is End.PASSED:
                    first = outcome
                if outcome.end is End.TIME_LIMIT or (self.options.score == "all" and first.end is not End.PASSED):
                    break
        return Verdict(passed, len(tests), first.end, first.detail + self._hint(first.detail))

    def _run(self, program: Program, test: CodeTest) -> Run:
        is_for_leetcode = test.call is not None or _SOLUTION.search(program.text) is not None
        common_names = self.options.common_names and is_for_leetcode
        return Run(program.text, test.stdin, test.code, test.call, program.before, common_names)

    def _compared(self, outcome: Outcome, test: CodeTest) -> Outcome:
        """Turns the end of a run that is to be compared into a pass or a wrong answer."""
        said = outcome.stdout
        if outcome.end is End.EXITED and test.output is not None:
            is_right, verb = same_output(said, test.output, self.options), "printed"
        elif outcome.end is End.RETURNED:
            is_close = closeness(self.options)
            is_right, verb = any(calls.is_equal(said, value, is_close) for value in test.values), "returned"
        else:
            return outcome
        return Outcome(End.PASSED) if is_right else Outcome(End.WRONG_ANSWER, detail=f"{verb} {_shown(said, verb)}")

    def _hint(self, complaint: str) -> str:
        return self._machine.hint(complaint) if self._machine is not None else ""


def _shown(said: str, verb: str) -> str:
    """What a program printed, or the JSON of the value that it returned."""
    return repr(said.strip()[:80]) if verb == "printed" else said.removeprefix('["value",').removesuffix("]")[:80]


def _result(name: str, scored: Sequence[tuple[Score, Verdict]]) -> Result:
    """The scores, with how each program's first failing run ended, and the share of each end in the group."""
    verdicts = [verdict if score.status is Status.OK else None for score, verdict in scored]
    ends = [verdict.end for verdict in verdicts if verdict is not None]
    metrics = {f"{name}/{end.value}": ends.count(end) / len(ends) for end in End if end not in _NOT_AN_END and ends}
    extra = {
        f"{name}_end": [verdict and verdict.end.value for verdict in verdicts],
        f"{name}_passed": [verdict and f"{verdict.passed}/{verdict.total}" for verdict in verdicts],
        f"{name}_detail": [verdict and verdict.detail for verdict in verdicts],
    }
    return Result(tuple(score for score, _ in scored), metrics, extra)
