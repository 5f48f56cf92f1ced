"""The sandbox: a program that is run finds what `python program.py` finds. Each is run by both, and prints the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End
from tests.support.sandboxes import PYTHON, needs_sandlock, outcome

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_sandlock]

PROGRAMS = {
    "exit": "print(1)\nexit()\nprint(2)",
    "quit": "print(1)\nquit()\nprint(2)",
    "exit with a code": "print(1)\nexit(3)",
    "exit with a message": "print(1)\nexit('no')",
    "exit in a function": "def main():\n    print(input())\n    exit(0)\nmain()",
    "exit of sys": "import sys\nprint(1)\nsys.exit()",
    "what site adds": "print(*map(repr, (exit, quit, help)))\nprint(copyright, callable(license))",
    "names": "import sys, os\nprint(__name__, [os.path.basename(arg) for arg in sys.argv], os.path.basename(__file__))",
    "globals": "print(sorted(set(globals()) - {'__cached__', '__annotations__'}))",
    "the depth of a recursion": "def f(n):\n    try: return f(n + 1)\n    except RecursionError: return n\nprint(f(0))",
    "a deeper one": "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(20000))",
    "input after the end": "print(input())\ntry:\n    input()\nexcept EOFError as error:\n    print(repr(error))",
    "input by its descriptor": "import os\nprint(os.read(0, 100), os.fstat(0).st_size)",
    "input by a file": "import sys\nprint(sys.stdin.readline(), open(0).read())",
    "input with a prompt": "print(input('x = '))",
    "main guard": "def main():\n    print('ran')\nif __name__ == '__main__':\n    main()",
    "main is a module": "import __main__\nx = 3\nprint(__main__.x)",
    "pickled objects": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)",
    "data classes": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nprint(A(1))",
    "a threaded recursion": "import sys, threading\nsys.setrecursionlimit(10**5)\nthreading.stack_size(2**26)\n"
    "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(9000)))\n"
    "t.start()\nt.join()",
    "an error": "print(1)\nraise ValueError('x')",
    "a docstring": "'''What it does.'''\nprint(__doc__)",
    "future": "from __future__ import annotations\ndef f(x: Nothing): pass\nprint(f.__annotations__)",
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_program_prints_what_python_prints(runners: Runners, tmp_path: Path, name: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[name])
    command = [PYTHON, str(script)]
    plain = subprocess.run(command, input="a line\n", capture_output=True, text=True, timeout=30, check=False)  # noqa: ASYNC221
    ran = await outcome(runners, PROGRAMS[name], stdin="a line\n")
    assert ran.stdout == plain.stdout
    assert (ran.end is End.EXITED) == (plain.returncode == 0), ran


async def test_what_comes_before_a_program_is_in_its_names_and_may_be_incomplete(runners: Runners) -> None:
    program = "def g(x):\n    return x + LIMIT"
    for before in ("LIMIT = 3", "LIMIT = 3\nraise ValueError", "LIMIT = 3\ndef g(x):\n    '''Adds.'''"):
        assert (await outcome(runners, program, "assert g(1) == 4", before=before)).end is End.PASSED
    broken = await outcome(runners, "def g(x):\n    return x", "assert g(1) == 1", before="def g(x):")
    assert broken.end is End.PASSED
