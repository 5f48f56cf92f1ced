"""The runner: a process between the server and the programs, which starts one confined run after another.

Owns the line to the server and the folder of the runs. It holds no secret of the server. Expected outputs and values
never reach it; the text of a test does, and passes through to the tests' process. When the server closes the line, or
dies, the runner ends the current run and itself.

    -> the fields of a Run, as JSON      <- {"end": …, "stdout": …, "detail": …},
                                            {"failed": …} (the sandbox) or {"unusable": …} (the test)
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from reward_server.sandbox.folders import remove
from reward_server.sandbox.kinds import WithCall, WithInput, WithTest
from reward_server.sandbox.pipes import Pipes
from reward_server.sandbox.runs import Outcome, Plan, Run, SandboxError, UnusableTestError
from reward_server.sandbox.test_host import TestHost

_PIECE = 1 << 16


class ServerGoneError(Exception):
    """The server closed the line."""


def main(plan_text: str, folder: str) -> None:
    """Answers requests until the server closes the line, which is this process's standard input."""
    requests, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    runs = _Runs(Plan.loads(plan_text), Path(folder), requests.fileno())
    lines = _Lines(requests.fileno())
    try:
        while (request := lines.next()) is not None:
            answers.write(json.dumps(_answer(runs, Run(**json.loads(request)))).encode() + b"\n")
            answers.flush()
    except (ServerGoneError, BrokenPipeError):
        pass
    finally:
        runs.close()
        remove(folder)


def _answer(runs: _Runs, run: Run) -> dict[str, Any]:
    try:
        outcome = runs.result(run)
        return {"end": outcome.end.value, "stdout": outcome.stdout, "detail": outcome.detail}
    except SandboxError as error:
        return {"failed": str(error)}
    except UnusableTestError as error:
        return {"unusable": str(error)}


class _Runs:
    """The runs of a runner, one after another, and the host of tests that they share."""

    def __init__(self, plan: Plan, folder: Path, server: int):
        """`server` is the line to the server: whatever comes there during a run ends it."""
        self._plan, self._folder, self._server = plan, folder, server
        self._pipes = Pipes()
        self._host: TestHost | None = None

    def result(self, run: Run) -> Outcome:
        own = Path(tempfile.mkdtemp(dir=self._folder))
        self._pipes.on_readable(self._server, _server_is_gone)
        try:
            if run.test is not None:
                return self._tested(run, own)
            running = (WithCall if run.call is not None else WithInput)(self._plan, self._pipes, own, run)
            try:
                return running.outcome()
            finally:
                running.end()
        finally:
            self._pipes.forget(self._server)
            remove(own)

    def close(self) -> None:
        """Ends the host of the tests."""
        if self._host is not None:
            self._host.end()
            remove(self._host.confined.folder.parent)
            self._host = None

    def _tested(self, run: Run, own: Path) -> Outcome:
        """The host is kept only after a run that ended well: whatever goes wrong must not reach the next test."""
        host, self._host = self._sound_host(), None
        running: WithTest | None = None
        is_kept = False
        try:
            running = WithTest(self._plan, self._pipes, own, run, host)
            outcome = running.outcome()
            running.end()
            is_kept = running.is_settled and host.finish()
            return outcome
        finally:
            if running is not None:
                running.end()
            self._host = host
            if not is_kept:
                self.close()

    def _sound_host(self) -> TestHost:
        """The host of the last test, or a new one: somebody may have killed it since."""
        self._pipes.wait(0)
        if self._host is not None and not self._host.confined.has_ended:
            return self._host
        self.close()
        return TestHost(self._plan, self._pipes, Path(tempfile.mkdtemp(dir=self._folder)) / "tests")


def _server_is_gone() -> None:
    raise ServerGoneError


class _Lines:
    """The lines of a file descriptor that a selector waits for as well, so nothing may be buffered."""

    def __init__(self, fd: int):
        self._fd = fd
        self._line = bytearray()

    def next(self) -> bytes | None:
        """The next line, None at the end. Only one request is ever under way, so a line ends what was read."""
        while not self._line.endswith(b"\n"):
            piece = os.read(self._fd, _PIECE)
            if not piece:
                return None
            self._line += piece
        line = bytes(self._line)
        self._line.clear()
        return line
