"""What runs within the confinement: the program's side and the tests' side.

    program     sets the limits, then runs the program as `python program.py` would
    serving     imports the program instead, and answers calls of its functions
    tests       hosts the tests: each runs in a process of its own and calls the program through `remote`
    remote      the program as a test sees it: names and objects in another process
    plain       the values that program and test may tell one another, as JSON
    common      the names that LeetCode imports for its users

Owns the way of these modules into a confined process. Such a process can read no file of ours, so the code is handed to
`python -c`. The modules import the standard library and one another, nothing else.
"""

from __future__ import annotations
import __future__

import functools
import marshal
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType

_FOLDER = Path(__file__).parent
_PACKAGES = ("reward_server", "reward_server.sandbox", "reward_server.sandbox.inside")

# For each kind of process the modules that it needs, in the order of their imports. The last one has the `main`.
PROGRAM_RUN = ("program",)
PROGRAM_SERVED = ("program", "plain", "common", "serving")
TESTS = ("program", "plain", "remote", "tests")

# In names of its own: __main__ is left clean for the program.
_BOOT = """
import sys
for name, code in modules:
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main()
"""
_FUTURE = "from __future__ import annotations\n"  # as a flag of the compiler, it need not be imported
_FLAGS = __future__.annotations.compiler_flag


@functools.cache
def command(python: Sequence[str], modules: Sequence[str]) -> tuple[str, ...]:
    """The command that starts an interpreter with these modules.

    Compiled already where the interpreter is the one that runs here: that saves a third of the time to start. Another
    one may have another bytecode and is handed text.
    """
    is_this_one = os.path.realpath(python[0]) == os.path.realpath(sys.executable)
    texts = {f"{_PACKAGES[-1]}.{name}": (_FOLDER / f"{name}.py").read_text().replace(_FUTURE, "") for name in modules}
    packages = dict.fromkeys(_PACKAGES, "")
    if not is_this_one:
        codes = "".join(f"({name!r}, compile({text!r}, {name!r}, 'exec', {_FLAGS}))," for name, text in texts.items())
        modules_text = f"[*{[*packages.items()]!r}, {codes}]"
        return (*python, "-c", f"exec({_BOOT!r}, {{'modules': {modules_text}}})")
    compiled = [(name, _compiled(text, name)) for name, text in (packages | texts).items()]
    return (*python, "-c", f"exec({_loads(_compiled(_BOOT, 'boot'))}, {{'modules': {_loads(compiled)}}})")


def _compiled(text: str, name: str) -> CodeType:
    return compile(text, name, "exec", _FLAGS, dont_inherit=True)


def _loads(value: object) -> str:
    return f"__import__('marshal').loads(bytes.fromhex({marshal.dumps(value).hex()!r}))"  # type: ignore[arg-type]
