"""What runs within the confinement. It imports only the standard library, and of ours only `plain`.

The confined processes can read no file of ours, so a module's text is handed to `python -c`.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent
_ROOMS = ("reward_server", "reward_server.sandbox", "reward_server.sandbox.inside")
# In names of its own: __main__ is left clean for the program.
_BOOT = """(lambda sys, texts, names: (
    [sys.modules.__setitem__(name, type(sys)(name)) for name in texts],
    [exec(text, sys.modules[name].__dict__) for name, text in texts.items()],
    exec({text!r}, names),
    names["main"](),
))(__import__("sys"), {needed!r}, {{"__name__": "inside"}})
"""


def script(name: str, *needed: str) -> str:
    """The text of a module of this folder and of those that it needs, for `python -c`; calls its `main`."""
    texts = dict.fromkeys(_ROOMS, "") | {f"{_ROOMS[-1]}.{each}": _text(each) for each in needed}
    return _BOOT.format(text=_text(name), needed=texts)


def _text(name: str) -> str:
    return (_FOLDER / f"{name}.py").read_text()
