"""Hostile texts made visible, and differences marked."""

from __future__ import annotations

import pytest

from reward_server.view.texts import differences, line_of, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u202etxt.exe", "a\\u202etxt.exe"),
        ("zero\u200bwidth\u2066", "zero\\u200bwidth\\u2066"),
        ("\ud800", "\\ud800"),
        ("over\rwrite\x00", "over\\x0dwrite\\x00"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("line\u2028break", "line\\u2028break"),
        ("größer, 数学 ☺", "größer, 数学 ☺"),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(text: str, expected: str) -> None:
    assert shown(text) == expected
    assert shown(text).encode()  # no lone surrogate is left


def test_a_line_is_short_and_one_line() -> None:
    assert line_of("a\n b" + "c" * 500).startswith("a bccc")
    assert len(line_of("c" * 500)) == 120


def test_differences_are_marked_by_words() -> None:
    assert differences("so it is 4 then", "so it is 5 then") == "  so it is \n- 4\n+ 5\n   then"
    assert differences("same", "same") == "  same"
    assert differences("", "\x1b") == "+ \\x1b"
