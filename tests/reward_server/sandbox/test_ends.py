"""The sandbox: how each kind of run ends, and what a program finds in it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End
from tests.support.processes import descendants
from tests.support.sandboxes import LIMITS, MIB, needs_sandlock, outcome, plan_of, started_since, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_sandlock]


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
        await until(lambda: not started_since(before))
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
