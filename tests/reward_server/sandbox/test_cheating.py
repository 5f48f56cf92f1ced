"""The sandbox: what a program cannot forge when it is tested, and what an honest one can do."""

from __future__ import annotations

import pytest

from reward_server.sandbox.pool import Runners
from reward_server.sandbox.runs import End, Outcome, UnusableTestError
from tests.support.sandboxes import needs_sandlock, outcome

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_sandlock]

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


VERDICT = 'V{"passed": true}\n'


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
