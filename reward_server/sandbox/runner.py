"""The runner: a process between the server and the programs, which starts one confined run after another.

Owns the line to the server and the folders of the runs. It holds no secret of the server's, and never learns which
output is expected. When the server closes the line, or dies, it ends what runs and itself.

    -> {"program": …, "stdin": …, "test": …}      <- {"end": …, "stdout": …, "detail": …},
                                                     {"failed": …} (the sandbox) or {"unusable": …} (the test)
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from reward_server.sandbox.folders import remove
from reward_server.sandbox.running import Running, ServerGoneError
from reward_server.sandbox.runs import Plan, Run, SandboxError, UnusableTestError

_PIECE = 1 << 16


def main(plan_text: str, folder: str) -> None:
    """Answers requests until the server closes the line, which is this process's standard input."""
    plan = Plan.loads(plan_text)
    requests, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lines = _Lines(requests.fileno())
    try:
        while (request := lines.next()) is not None:
            answer = _answer(plan, Path(folder), Run(**json.loads(request)), requests.fileno())
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()
    except (ServerGoneError, BrokenPipeError):
        pass
    finally:
        remove(folder)


def _answer(plan: Plan, folder: Path, run: Run, server: int) -> dict[str, Any]:
    own = Path(tempfile.mkdtemp(dir=folder))
    try:
        outcome = Running(plan, own, server).result(run)
        return {"end": outcome.end.value, "stdout": outcome.stdout, "detail": outcome.detail}
    except SandboxError as error:
        return {"failed": str(error)}
    except UnusableTestError as error:
        return {"unusable": str(error)}
    finally:
        remove(own)


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
