"""The sandbox: how each kind of run ends, what a program cannot forge, and that nothing of it stays behind.

With real processes, confined by sandlock as the server does it, and by bubblewrap where it is installed and can run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from reward_server.sandbox.attacks import not_stopped
from reward_server.sandbox.backends import BACKENDS
from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End, Limits, Outcome, Plan, Run, SandboxError, UnusableTestError
from tests.support.processes import descendants, is_alive

LACK = BACKENDS["sandlock"].missing()
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(LACK is not None, reason=str(LACK)),  # a kernel before Linux 6.12
]

MIB = 1 << 20
LIMITS = Limits(
    time_s=0.25, memory_bytes=256 * MIB, processes=1, open_files=32, output_bytes=1 * MIB, disk_bytes=4 * MIB
)
PYTHON = os.path.realpath(sys.executable)
HAS_BUBBLEWRAP = shutil.which("bwrap") is not None and os.geteuid() != 0


def plan_of(backend: str = "sandlock", **limits: int) -> Plan:
    return Plan(backend, (PYTHON, "-I", "-S", "-B"), (sys.base_prefix,), dataclasses.replace(LIMITS, **limits))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runners() -> AsyncIterator[Runners]:
    runners = Runners(plan_of(), 2)
    yield runners
    await runners.close()


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where new runners have their folders, and nobody else."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def outcome(runners: Runners, program: str, test: str | None = None, stdin: str = "") -> Outcome:
    async with runners.lease() as runner:
        return await runner.ask(Run(program, stdin, test))


# ----------------------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("program", "end"),
    [
        ("print(sum(map(int, open(0))))", End.EXITED),
        ("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()", End.EXITED),
        ("open('own.txt', 'w').write('x')\nprint(open('own.txt').read())", End.EXITED),
        ("import asyncio\nasyncio.run(asyncio.sleep(0))", End.EXITED),
        ("1 / 0", End.RUNTIME_ERROR),
        ("no Python", End.RUNTIME_ERROR),
        ("import sys\nsys.exit(3)", End.RUNTIME_ERROR),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", End.RUNTIME_ERROR),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", End.RUNTIME_ERROR),
        ("import os\nos.kill(os.getpid(), 40)", End.RUNTIME_ERROR),
        ("while True: pass", End.TIME_LIMIT),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", End.TIME_LIMIT),
        ("x = bytearray(1 << 40)", End.MEMORY_LIMIT),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", End.MEMORY_LIMIT),
        ("while True: print('x' * 1000)", End.OUTPUT_LIMIT),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", End.OUTPUT_LIMIT),
        ("open('big', 'wb').write(bytes(8 << 20))", End.OUTPUT_LIMIT),
        ("held = [open('/dev/null') for _ in range(100)]", End.FILE_LIMIT),
    ],
)
async def test_each_kind_of_end_is_told_apart(runners: Runners, program: str, end: End) -> None:
    assert (await outcome(runners, program, stdin="40\n2\n")).end is end


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos.fork()",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])",
        "import threading, time\nthreading.stack_size(32768)\n"
        "while True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    ],
)
async def test_processes_and_threads_are_limited(program: str) -> None:
    runners = Runners(plan_of(memory_bytes=64 * MIB), 1)
    try:
        assert (await outcome(runners, program)).end is End.PROCESS_LIMIT
    finally:
        await runners.close()


async def test_what_is_forbidden_is_refused_and_has_a_reason_of_its_own(runners: Runners, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    forbidden = [
        "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
        "import socket\nsocket.create_connection(('10.0.0.1', 9), 1)",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "open('/usr/lib/new', 'w')",
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.ptrace(16, 1, 0, 0) == -1 and open('/usr/lib/new', 'w')",
    ]
    for program in forbidden:
        assert (await outcome(runners, program)).end in (End.FORBIDDEN, End.EXITED), program
    assert (await outcome(runners, f"open({str(outside)!r}, 'w').write('x')")).end is not End.EXITED
    assert not outside.exists()


async def test_many_small_files_meet_the_limit_too(runners: Runners) -> None:
    program = "import time\nfor n in range(64): open(str(n), 'wb').write(bytes(1 << 17))\ntime.sleep(1)"
    assert (await outcome(runners, program)).end is End.OUTPUT_LIMIT


@pytest.mark.parametrize(
    "program",
    [
        "import os\nfor _ in range(1200):\n    os.mkdir('d')\n    os.chdir('d')\n",
        "import os\nos.mkdir('d', 0o300)\nopen('d/f', 'w').write('x')\nos.mkdir('e', 0)\n",
        "import os\nos.symlink('/', 'd')\nos.symlink('loop', 'loop')\n",
    ],
)
async def test_what_a_program_builds_in_its_folder_trips_nobody_up(program: str, folders: Path) -> None:
    runners = Runners(plan_of(), 1)
    built = await outcome(runners, program + "import time\ntime.sleep(0.3)")
    assert built.end in (End.EXITED, End.OUTPUT_LIMIT, End.TIME_LIMIT)
    [own] = os.listdir(folders)
    assert os.listdir(folders / own) == [], "it is gone after each run"
    await runners.close()
    assert os.listdir(folders) == []


async def test_a_program_that_leaves_its_process_group_is_ended_too() -> None:
    program = (
        "import os, time\nchild = os.fork()\nif child == 0:\n    os.setpgid(0, 0)\n    time.sleep(60)\n"
        "time.sleep(0.3)\nos.setpgid(0, child)\ntime.sleep(60)"
    )
    runners = Runners(plan_of(processes=4), 1)
    try:
        assert (await outcome(runners, "print(1)")).stdout == "1\n"
        before = descendants(os.getpid())
        assert (await outcome(runners, program)).end is End.TIME_LIMIT
        await until(lambda: not mine(before))
    finally:
        await runners.close()


async def test_a_program_that_sleeps_is_ended_by_the_clock(runners: Runners) -> None:
    began = time.monotonic()
    assert (await outcome(runners, "import time\ntime.sleep(60)")).end is End.TIME_LIMIT
    assert LIMITS.wall_s <= time.monotonic() - began < 20


async def test_a_program_that_closes_its_output_and_lives_on_is_ended_too(runners: Runners) -> None:
    closed = await outcome(runners, "import os, time\nos.close(0); os.close(1); os.close(2)\ntime.sleep(60)")
    assert closed.end is End.TIME_LIMIT


async def test_a_program_that_does_not_read_its_input_is_none_the_worse(runners: Runners) -> None:
    assert (await outcome(runners, "print('done')", stdin="x" * 300_000)).stdout == "done\n"


async def test_text_of_every_kind_comes_through(runners: Runners) -> None:
    text = "ünï ☃ 𝄞"
    assert (await outcome(runners, "print(input())", stdin=text)).stdout == text + "\n"
    assert (await outcome(runners, "x = '\ud83d'")).end is End.RUNTIME_ERROR, "cut in the middle of a character"
    assert (await outcome(runners, "x = '\0'")).end is End.RUNTIME_ERROR


async def test_a_program_has_no_open_file_but_its_own_three(runners: Runners) -> None:
    program = (
        "import os\nfor fd in range(1024):\n    try: os.fstat(fd)\n    except OSError: continue\n    print(fd, end=' ')"
    )
    assert (await outcome(runners, program)).stdout == "0 1 2 "


async def test_a_program_is_main_and_finds_nothing_of_the_servers(
    runners: Runners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "secret")
    program = "import os, sys\nprint(__name__, sys.argv, sorted(globals()), sorted(os.environ), os.listdir('.'))"
    printed = (await outcome(runners, program)).stdout
    assert printed.startswith("__main__ ['program.py']")
    assert "TOKEN" not in printed
    assert "reward" not in printed
    assert printed.endswith("[]\n")


# ------------------------------------------------------------------------------------------------------------- cheating

HONEST = "def f(x):\n    return x + 1"


@pytest.mark.parametrize(
    ("program", "test"),
    [
        (HONEST, "assert f(1) == 2"),
        ("def f(xs, *, key=None):\n    return sorted(xs, key=key)[::-1]", "assert f([1, 3, 2]) == [3, 2, 1]"),
        ("def f():\n    return {(1, 2): {3.5}, b'x': None, 'big': 1 << 200}",
         "assert f() == {(1, 2): {3.5}, b'x': None, 'big': 1 << 200}"),
        ("def f():\n    return float('nan')", "import math\nassert math.isnan(f())"),
        ("from collections import Counter\ndef f(x):\n    return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
        ("def f(x):\n    raise ValueError('no')", "try:\n    f(1)\nexcept ValueError as e:\n    assert str(e) == 'no'\n"
         "else:\n    assert False"),
        ("class E(KeyError): pass\ndef f(x):\n    raise E(x)", "try:\n    f(1); assert False\nexcept KeyError: pass"),
        ("class Stack:\n    def __init__(self): self.xs = []\n    def push(self, x): self.xs.append(x)\n"
         "    def pop(self): return self.xs.pop()",
         "s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2\nassert s.xs == [1]"),
        ("from fractions import Fraction\ndef f(x):\n    return Fraction(x, 3)", "assert abs(f(1) - 1 / 3) < 1e-9"),
        ("class Solution:\n    def f(self, x): return x + 1", "assert Solution().f(1) == 2"),
        ("def f(x):\n    print('hello')\n    return x", "assert f(1) == 1"),
        ("LIMIT = 3\nif __name__ == '__main__':\n    input()", "assert LIMIT == 3"),
        ("def outer(f):\n    return f(1)\ndef g(x):\n    return x + 1", "assert outer(g) == 2"),
        (HONEST, "def check(candidate):\n    assert candidate(1) == 2\ncheck(__program__.f)"),
        ("def max(xs):\n    return xs[0]",
         "def check(candidate):\n    assert candidate([1, 3]) == 1\ncheck(__program__.max)"),
    ],
)  # fmt: skip
async def test_an_honest_program_passes(runners: Runners, program: str, test: str) -> None:
    assert await outcome(runners, program, test) == Outcome(End.PASSED)


VERDICT = 'V{"passed": true}\\n'


@pytest.mark.parametrize(
    "program",
    [
        "",
        "def f(x):\n    return x",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "def f(x):\n    import os\n    os._exit(0)",
        "def f(x):\n    raise SystemExit(0)",
        "def f(x):\n    raise KeyboardInterrupt",
        "def f(x):\n    raise StopIteration",
        "def f(x):\n    raise AssertionError",
        f"print({VERDICT!r})\ndef f(x):\n    print({VERDICT!r})",
        f"import os\nfor fd in range(64):\n    try: os.write(fd, {VERDICT!r}.encode())\n    except OSError: pass",
        "import os\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, b'[\"value\", true]\\n' * 9)\n    except OSError: pass\ndef f(x): pass",
        "class A:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(x):\n    return A()",
        "class A(int):\n    def __eq__(self, o): return True\n    def __hash__(self): return 2\ndef f(x): return A(9)",
        "class A:\n    def __getattr__(self, name): return lambda *a: True\ndef f(x):\n    return A()",
        "import builtins as b\nb.AssertionError = StopIteration\nb.compile = b.exec = print\ndef f(x): return 0",
        "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
        "import os, signal\nos.kill(-1, signal.SIGKILL)",
        "def f(x):\n    return f",
        "def f(x):\n    return [[]] * 300_000",
        "def f(x):\n    a = []\n    a.append(a)\n    return a",
    ],
)
async def test_a_cheating_program_fails_and_its_failure_is_a_score(runners: Runners, program: str) -> None:
    """No SandboxError either: with one of them a program could leave its group instead of scoring 0."""
    assert (await outcome(runners, program, "assert f(1) == 2")).end is not End.PASSED


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def abs(x): return 0\ndef f(x): return 9.0", "assert abs(f(1) - 2.0) < 1e-6"),
        ("class math:\n    isclose = lambda *a: True\ndef f(x): return 9.0", "assert math.isclose(f(1), 2.0)"),
        ("def f(x):\n    raise StopIteration", "assert all(map(lambda x: f(x) == x + 1, [1, 2]))"),
        ("def f(xs):\n    xs.clear()\n    return []", "data = [2, 1]\nassert f(data) == sorted(data)"),
        ("class A:\n    def __eq__(self, o): return True\ndef f(x): return A()", "assert f(1) == f(2)"),
        ("def f(x):\n    while True: yield x", "assert list(f(1)) == [1]"),
        ("def f(x):\n    return 'x' * (2 << 20)", "assert f(1) == 'x'"),
    ],
)
async def test_what_a_test_leans_on_is_not_the_programs_to_change(runners: Runners, program: str, test: str) -> None:
    assert (await outcome(runners, program, test)).end is not End.PASSED


async def test_the_expected_value_is_nowhere_in_the_programs_process(runners: Runners) -> None:
    program = (
        "import gc, os, sys\n"
        "def f(x):\n"
        "    seen = [repr(o) for o in gc.get_objects() if isinstance(o, (str, list, tuple, dict))]\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        seen.append(repr(frame.f_locals) + repr(frame.f_globals))\n"
        "        frame = frame.f_back\n"
        "    seen += [repr(os.environ), *os.listdir('.')]\n"
        "    for name in ('cmdline', 'environ', 'maps'):\n"
        "        for pid in (os.getppid(), *range(1, 50)):\n"
        "            try: seen.append(open(f'/proc/{pid}/{name}').read())\n"
        "            except OSError: pass\n"
        "    needle = ''.join(['expected', '-8461'])\n"
        "    return needle if any(needle in s for s in seen) else 'not found'\n"
    )
    found = await outcome(runners, program, "assert f(1) == 'expected-8461'")
    assert found.end is End.WRONG_ANSWER, found


async def test_the_reasons_of_a_failed_test_are_told_apart(runners: Runners) -> None:
    reasons = {
        "def f(x): return 0": (End.WRONG_ANSWER, "AssertionError: off"),
        "def f(x): return 1 / 0": (End.RUNTIME_ERROR, "ZeroDivisionError: division by zero"),
        "def g(x): return 0": (End.RUNTIME_ERROR, "NameError: name 'f' is not defined"),
        "def f(x): open('/usr/lib/new', 'w')": (End.FORBIDDEN, ""),
        "def f(x): bytearray(1 << 40)": (End.MEMORY_LIMIT, "MemoryError: "),
        "def f(x):\n    while True: pass": (End.TIME_LIMIT, ""),
        "def f(x):\n    import os\n    os._exit(0)": (End.RUNTIME_ERROR, "it ended before its test did"),
    }
    for program, (end, detail) in reasons.items():
        got = await outcome(runners, program, "assert f(1) == 2, 'off'")
        assert got.end is end, program
        assert got.detail.startswith(detail), program


@pytest.mark.parametrize(
    ("test", "message"),
    [("assert f(1) ==", "the test is no Python: invalid syntax"), ("f(lambda: 1)", "cannot hand a function")],
)
async def test_a_test_that_cannot_be_run_is_no_programs_fault(runners: Runners, test: str, message: str) -> None:
    with pytest.raises(UnusableTestError, match=message):
        await outcome(runners, HONEST, test)
    assert (await outcome(runners, HONEST, "assert f(1) == 2")).end is End.PASSED, "and costs no runner"


# ----------------------------------------------------------------------------------------------------- lives and deaths

DAEMON = (
    "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.setsid()\n"
    "        time.sleep(120)\n    os._exit(0)\n"
)


async def until(holds: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - no event tells of other processes' ends
            await asyncio.sleep(0.02)


def mine(before: set[int]) -> set[int]:
    return descendants(os.getpid()) - before


async def test_what_a_program_left_running_ends_with_its_run() -> None:
    runners = Runners(plan_of(processes=4), 1)
    try:
        await outcome(runners, "print()")
        before = descendants(os.getpid())
        assert (await outcome(runners, DAEMON)).end is End.EXITED
        await until(lambda: not mine(before))
    finally:
        await runners.close()


async def running(runners: Runners, program: str, processes: int) -> tuple[asyncio.Task[Outcome], set[int]]:
    """A run under way, and all processes of its."""
    before = descendants(os.getpid())
    asking = asyncio.create_task(outcome(runners, program))
    await until(lambda: len(mine(before)) >= processes)
    await asyncio.sleep(0.3)
    return asking, mine(before)


async def test_a_cancelled_caller_ends_the_program_and_all_that_it_started() -> None:
    runners = Runners(plan_of(processes=4), 1)
    try:
        asking, processes = await running(runners, DAEMON + "time.sleep(120)", 4)
        asking.cancel()
        await until(lambda: not any(map(is_alive, processes)))
        assert (await outcome(runners, "print(1)")).stdout == "1\n", "and the next caller gets a new runner"
    finally:
        await runners.close()


async def test_a_runner_killed_hard_leaves_no_orphan_and_is_no_score() -> None:
    runners = Runners(plan_of(processes=4), 1)
    try:
        asking, processes = await running(runners, DAEMON + "time.sleep(120)", 4)
        os.kill(min(processes), signal.SIGKILL)
        with pytest.raises(SandboxError, match="the runner of the program ended"):
            await asking
        await until(lambda: not any(map(is_alive, processes)))
        assert (await outcome(runners, "print(1)")).stdout == "1\n"
    finally:
        await runners.close()


async def test_a_server_killed_hard_leaves_no_orphan() -> None:
    folders = [str(Path(__file__).parents[3]), *sys.path]
    code = (
        f"import asyncio, sys\nsys.path[:0] = {folders!r}\nfrom tests.reward_server.sandbox.test_sandbox import *\n"
        "asyncio.run(outcome(Runners(plan_of(processes=4), 1), DAEMON + 'time.sleep(120)'))"
    )
    before = descendants(os.getpid())
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    await until(lambda: len(mine(before)) >= 5, 20)
    await asyncio.sleep(0.3)
    processes = mine(before)
    server.kill()
    await server.wait()
    await until(lambda: not any(map(is_alive, processes)))


async def test_an_interpreter_that_does_not_come_up_is_the_sandboxes_failure() -> None:
    runners = Runners(dataclasses.replace(plan_of(), python=("/no/such/python",)), 1)
    try:
        with pytest.raises(SandboxError, match=r"did not come up|cannot start"):
            await outcome(runners, "print(1)")
    finally:
        await runners.close()


async def test_closing_leaves_no_process_and_no_file(folders: Path) -> None:
    before = descendants(os.getpid())
    runners = Runners(plan_of(), 2)
    await asyncio.gather(*(outcome(runners, "open('x', 'w').write('x')") for _ in range(4)))
    assert len(os.listdir(folders)) == 2, "runners are used again"
    await runners.close()
    await until(lambda: not mine(before))
    assert os.listdir(folders) == []


# -------------------------------------------------------------------------------------------------------- the self-test


async def test_sandlock_stops_every_attack_of_the_self_test() -> None:
    assert await not_stopped(plan_of(), 2) == []


@pytest.mark.skipif(not HAS_BUBBLEWRAP, reason="bubblewrap is not installed, or this is root")
async def test_bubblewrap_stops_the_same_and_tells_the_same_ends() -> None:
    assert await not_stopped(plan_of("bubblewrap"), 2) == []
    runners = Runners(plan_of("bubblewrap"), 1)
    try:
        assert (await outcome(runners, "print(input())", stdin="x")).stdout == "x\n"
        assert (await outcome(runners, "import os\nos.kill(os.getpid(), 11)")).end is End.RUNTIME_ERROR
        assert (await outcome(runners, HONEST, "assert f(1) == 2")).end is End.PASSED
        assert (await outcome(runners, HONEST, "assert f(1) == 3")).end is End.WRONG_ANSWER
        assert (await outcome(runners, "import os\nos._exit(0)", "assert f(1) == 2")).end is End.RUNTIME_ERROR
    finally:
        await runners.close()
