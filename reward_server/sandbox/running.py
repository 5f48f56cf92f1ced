"""The frame of one run: a program's process, and the wait until its run is over or a limit is met.

Owns the deadline and the limits of output and disk. The classes in `kinds` say what a program is run with, and when its
run is over.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path

from reward_server.sandbox.confined import Confined
from reward_server.sandbox.folders import fits
from reward_server.sandbox.inside import PROGRAM_SERVED
from reward_server.sandbox.pipes import Pipes
from reward_server.sandbox.runs import End, Outcome, Plan, Run

_START_S = 10.0  # for an interpreter to come up on a busy machine; no program runs yet
_LOOK_S = 0.1  # between looks at how much a program has written to its folder: no event tells of it
_WHY = {
    End.TIME_LIMIT: "longer than {limits.wall_s:g} s by the clock",
    End.OUTPUT_LIMIT: "more than {limits.output_bytes} bytes of output, or {limits.disk_bytes} of files",
}


class Running(ABC):
    """A program's process, and the wait until its run is over."""

    def __init__(self, plan: Plan, pipes: Pipes, folder: Path, run: Run, modules: tuple[str, ...]):
        self._limits = plan.limits
        self._pipes = pipes
        self._over_limit: End | None = None
        served = (("1" if run.common_names else ""),) if modules is PROGRAM_SERVED else ()
        self._program = Confined(
            plan,
            pipes,
            folder / "program",
            modules,
            (run.before, run.program, *served),
            on_output=self._on_output,
            on_end=self._on_end,
        )

    def outcome(self) -> Outcome:
        seconds = self._wait()
        returncode = self.end()
        self._check_it_came_up()
        if self._over_limit is not None:
            return Outcome(self._over_limit, detail=_WHY[self._over_limit].format(limits=self._limits))
        return self._judged(returncode, seconds)

    def end(self) -> int:
        """Ends the program. Returns its exit code."""
        return self._program.end()

    @abstractmethod
    def _on_output(self, piece: bytes) -> None:
        """Takes what the program wrote to its standard output."""

    def _on_end(self) -> None:  # noqa: B027 - only a test has to be told
        """Told once the program has ended, and all that it wrote was handed on."""

    @abstractmethod
    def _is_over(self) -> bool: ...

    @abstractmethod
    def _judged(self, returncode: int, seconds: float) -> Outcome:
        """What came of a run that met no limit of ours; `seconds` since all processes were up."""

    def _is_ready(self) -> bool:
        return self._program.is_ready

    def _check_it_came_up(self) -> None:
        self._program.check_it_came_up()

    def _folders(self) -> list[Path]:
        return [self._program.folder]

    def _pids(self) -> list[int]:
        return [self._program.pid]

    def _wait(self) -> float:
        """Until the run is over or a limit is met. Returns the seconds since all processes were up."""
        began, ready = time.monotonic(), None
        while not self._is_over() and self._over_limit is None:
            now = time.monotonic()
            if ready is None and self._is_ready():
                ready = now
            deadline = began + _START_S if ready is None else ready + self._limits.wall_s
            if now >= deadline and ready is not None:
                deadline += min(self._starved_s(), self._limits.most_starved_s)
            if now >= deadline:
                self._over_limit = None if ready is None else End.TIME_LIMIT
                break
            self._pipes.wait(min(deadline - now, _LOOK_S))
            self._look_at_output(ready is not None)
        return time.monotonic() - (ready or began)

    def _look_at_output(self, has_begun: bool) -> None:
        fit = all(fits(folder, self._limits.disk_bytes) for folder in self._folders()) if has_begun else True
        if not fit or self._program.printed > self._limits.output_bytes:
            self._over_limit = End.OUTPUT_LIMIT

    def _starved_s(self) -> float:
        """Seconds that the processes were ready to run and had no processor: a busy machine's, not theirs."""
        return sum(map(_waited_s, self._pids()))


def _waited_s(pid: int) -> float:
    """Of the process's first thread: its second number in nanoseconds (Linux, Documentation/scheduler/sched-stats)."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
