"""Texts that a model wrote, made safe to look at: what cannot be seen is spelled out, and nothing is interpreted.

Pure. Owns escapes and the marking of differences; the pages show the results by widgets that know neither HTML nor
Markdown.
"""

from __future__ import annotations

import difflib
import re
import unicodedata

_KEPT = {"\n", "\t"}
# Cc: control characters, ANSI's escape among them; Cf: bidi controls, zero-width and tag characters; Cs: lone
# surrogates; Co, Cn: no characters at all; Zl, Zp: line breaks that are no newline.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_LINE_CHARACTERS = 120


def shown(text: str) -> str:
    """With every character that is not seen, or moves others, as an escape: \\x1b, \\u202e, \\ud800."""
    return "".join(
        char if char in _KEPT or unicodedata.category(char) not in _UNSEEN else _escape(char) for char in text
    )


def line_of(text: str, characters: int = _LINE_CHARACTERS) -> str:
    """The beginning of a text on one line, for cells of a table."""
    line = re.sub(r"\s+", " ", shown(text[: 4 * characters])).strip()
    return line if len(line) <= characters else line[: characters - 1] + "…"


def differences(first: str, second: str) -> str:
    """How `second` differs from `first`, by words: lines that begin with "-", "+" or, for what both have, " ".

    It is shown as the language "diff", in which those lines are coloured.
    """
    old, new = _words(shown(first)), _words(shown(second))
    lines: list[str] = []
    for kind, from_old, to_old, from_new, to_new in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        if kind == "equal":
            lines += _marked(" ", old[from_old:to_old])
            continue
        lines += _marked("-", old[from_old:to_old])
        lines += _marked("+", new[from_new:to_new])
    return "\n".join(lines)


def _words(text: str) -> list[str]:
    return re.findall(r"\S+|\n|[^\S\n]+", text)


def _marked(sign: str, words: list[str]) -> list[str]:
    text = "".join(words)
    return [f"{sign} {line}" for line in text.split("\n") if line.strip()]


def _escape(char: str) -> str:
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
