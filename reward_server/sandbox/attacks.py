"""The attacks that a sandbox must stop, tried before a server serves.

Owns the attacks and the evidence of whether they were stopped. The evidence is taken outside the sandbox: a file that
was not written, a connection that did not arrive. Every attack is bounded, so that it does no harm if it succeeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reward_server.sandbox import calls
from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End, Outcome, Plan, Run, SandboxError

_SECRET = "a secret of the server's"
_TIME_S = 1.0
_FORKS = 100  # beyond the limit: where the kernel counts threads, 64 more are allowed


@dataclass(frozen=True, slots=True)
class Attack:
    """A program, and the check of its outcome that says whether it was stopped."""

    what: str
    program: str
    is_stopped: Callable[[Outcome], bool]


async def not_stopped(plan: Plan, size: int) -> list[str]:
    """The attacks that this plan's sandbox does not stop, each with its outcome.

    Raises SandboxError if an honest program does not run in it.
    """
    runners = Runners(plan, size)
    attacked = Runners(dataclasses.replace(plan, limits=dataclasses.replace(plan.limits, time_s=_TIME_S)), size)
    try:
        await _check_that_it_runs(runners)
        with _Outside() as outside:
            attacks = _attacks(plan, outside)
            outcomes = await asyncio.gather(*(_outcome(attacked, attack) for attack in attacks))
            return [
                f"{attack.what} ({outcome.end.value}: {outcome.detail or outcome.stdout.strip()[:80] or 'no output'})"
                for attack, outcome in zip(attacks, outcomes, strict=True)
                if not attack.is_stopped(outcome)
            ]
    finally:
        await runners.close()
        await attacked.close()


async def check_that_it_runs(plan: Plan) -> None:
    """Raises SandboxError unless an honest program runs: with an input, against a test and with a call."""
    runners = Runners(plan, 1)
    try:
        await _check_that_it_runs(runners)
    finally:
        await runners.close()


async def _check_that_it_runs(runners: Runners) -> None:
    async with runners.lease() as runner:
        by_input = await runner.ask(Run("print(int(input()) + 1)", stdin="41\n"))
        by_test = await runner.ask(Run("def f(x):\n    return [x + 1]", test="assert f(41) == [42]"))
        by_call = await runner.ask(Run("def f(x):\n    return [x + 1]", call=calls.request("f", [41])))
    expected = ((by_input, End.EXITED, "42\n"), (by_test, End.PASSED, ""), (by_call, End.RETURNED, '["value",[42]]'))
    for outcome, end, stdout in expected:
        if (outcome.end, outcome.stdout) != (end, stdout):
            raise SandboxError(f"an honest program does not run in it: {outcome.end.value}, {outcome.detail}")


async def _outcome(runners: Runners, attack: Attack) -> Outcome:
    async with runners.lease() as runner:
        return await runner.ask(Run(attack.program))


class _Outside:
    """A file, a folder and two listeners outside the sandbox that any user may reach. They are removed at the end."""

    def __enter__(self) -> _Outside:
        self._exits = contextlib.ExitStack()
        self.folder = Path(self._exits.enter_context(tempfile.TemporaryDirectory(prefix="reward-outside-")))
        self.folder.chmod(0o777)
        self.secret = self.folder / "secret"
        self.secret.write_text(_SECRET)
        self.secret.chmod(0o666)
        self.written = self.folder / "written"
        self.tcp = self._listen(socket.AF_INET, ("127.0.0.1", 0))
        self.unix = self._listen(socket.AF_UNIX, str(self.folder / "socket"))
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _listen(self, family: int, address: object) -> socket.socket:
        listener = self._exits.enter_context(socket.socket(family))
        listener.bind(address)  # type: ignore[arg-type]
        listener.listen()
        return listener


def _attacks(plan: Plan, outside: _Outside) -> list[Attack]:
    limits = plan.limits

    def quiet(outcome: Outcome) -> bool:
        return "reached" not in outcome.stdout

    def ended(*ends: End) -> Callable[[Outcome], bool]:
        return lambda outcome: outcome.end in ends

    connect = "import socket\ns = socket.socket(socket.{family})\ns.settimeout(1)\ns.connect({to!r})\nprint('reached')"
    return [
        Attack("endless loops", "while True:\n    pass", ended(End.TIME_LIMIT)),  # the longest one starts first
        Attack(
            "reading files",
            f"print(open({str(outside.secret)!r}).read())",
            lambda outcome: _SECRET not in outcome.stdout,
        ),
        Attack(
            "writing files",
            f"open({str(outside.written)!r}, 'w').write('x')",
            lambda _: not outside.written.exists(),
        ),
        Attack(
            "changing files",
            f"import os\nos.chmod({str(outside.secret)!r}, 0o600)",
            lambda _: outside.secret.stat().st_mode & 0o777 == 0o666,
        ),
        Attack("network", connect.format(family="AF_INET", to=outside.tcp.getsockname()), quiet),
        Attack("unix sockets", connect.format(family="AF_UNIX", to=outside.unix.getsockname()), quiet),
        Attack("signals to other processes", f"import os\nos.kill({os.getpid()}, 0)\nprint('reached')", quiet),
        Attack(
            "fork bombs",
            f"import os, time\nfor n in range({limits.processes + _FORKS}):\n    if os.fork() == 0:\n"
            "        time.sleep(1)\n        os._exit(0)\nprint('reached')",
            quiet,
        ),
        Attack("memory bombs", f"x = bytearray({2 * limits.memory_bytes})", ended(End.MEMORY_LIMIT)),
        Attack("output bombs", f"print('x' * {2 * limits.output_bytes})", ended(End.OUTPUT_LIMIT, End.MEMORY_LIMIT)),
        Attack(
            "open files",
            f"held = [open('/dev/null') for _ in range({limits.open_files + 1})]",
            ended(End.FILE_LIMIT),
        ),
    ]
