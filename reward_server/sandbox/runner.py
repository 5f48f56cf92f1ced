"""The runner: a process between the server and the programs, which starts one confined run after another.

Owns the line to the server and the folder of the runs. It holds no secret of the server's. Of what is expected it knows
only what a test says: outputs and values that are compared never reach it. When the server closes the line, or dies, it
ends what runs and itself.

    -> the fields of a Run, as JSON      <- {"end": …, "stdout": …, "detail": …},
                                            {"failed": …} (the sandbox) or {"unusable": …} (the test)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from reward_server.sandbox.folders import remove
from reward_server.sandbox.running import Runs, ServerGoneError
from reward_server.sandbox.runs import Plan, Run, SandboxError, UnusableTestError

_PIECE = 1 << 16


def main(plan_text: str, folder: str) -> None:
    """Answers requests until the server closes the line, which is this process's standard input."""
    requests, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    runs = Runs(Plan.loads(plan_text), Path(folder), requests.fileno())
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


def _answer(runs: Runs, run: Run) -> dict[str, Any]:
    try:
        outcome = runs.result(run)
        return {"end": outcome.end.value, "stdout": outcome.stdout, "detail": outcome.detail}
    except SandboxError as error:
        return {"failed": str(error)}
    except UnusableTestError as error:
        return {"unusable": str(error)}


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
