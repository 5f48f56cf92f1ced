"""The scorer `code`: which part of a completion is the program."""

from __future__ import annotations

import time

import pytest

from reward_server.scorers.code.programs import Program, completed, program_of, stub_of


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("so:\n```python\na\n```\ndone", "a\n"),
        ("```\na\n```", "a\n"),
        ("```py\na\n```\nbetter:\n```python3\nb\n```", "b\n"),
        ("```python\na\n```\nrun it:\n```bash\npython a.py\n```", "a\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("````python\n```\n````", "```\n"),
        ("1. do\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b\n"),
        ("<think>```python\na\n```</think>\n```python\nb\n```", "b\n"),
        ("```python\na\n```\nno:\n```python\nb, cut off", "a\n"),
        ("print(1)", "print(1)"),
        ("```python\na\n```\nIt prints:\n```\n42\n```", "a\n"),
        ("```python\na\n```\n```\nb\n```\n```python\nc\n```\n```text\nd\n```", "c\n"),
        ("```\na\n```\n```\nb\n```", "b\n"),
        ("```Python\na\n```", "a\n"),
        ("```python title=x.py\na\n```", "a\n"),
        ("```{python}\na\n```\n```{.python}\nb\n```", "b\n"),
        ("```python\nstopped at a fence", "stopped at a fence\n"),
        ("The input\n```\n3\n```\n```python\nstopped at a fence\n", "stopped at a fence\n\n"),
        ("```bash\ncut off", None),
        ("```bash\nls\n```", None),
        ("```python\n\n```", "\n"),
        ("", None),
    ],
)
def test_the_program_is_the_last_block_of_python_or_all_of_it(text: str, program: str | None) -> None:
    assert program_of(text) == program


def test_where_a_block_is_asked_for_text_is_no_program() -> None:
    assert program_of("print(1)", "fenced") is None
    assert program_of("```python\na\n```", "fenced") == "a\n"


def test_finding_the_program_takes_time_in_proportion_to_the_text() -> None:
    began = time.monotonic()
    assert program_of("```a\n" * 200_000) is None
    assert time.monotonic() - began < 5


STUB = 'import math\n\n\ndef area(r):\n    """ The area. """\n'


@pytest.mark.parametrize(
    ("prompt", "stub"),
    [
        (STUB, STUB),
        (f"\n{STUB}", f"\n{STUB}"),
        (f"Complete this.\n```python\n{STUB}```", STUB),
        (f"Complete this.\n```\nexample\n```\n```\n{STUB}```\nGo.", STUB),
        ([{"role": "user", "content": f"```python\n{STUB}```"}], STUB),
        ("Write a function area(r).", ""),
        (f"Write it: {STUB}", ""),
        ("def other(r):\n    pass", ""),
        ([], ""),
    ],
)
def test_the_code_of_a_prompt_is_what_begins_the_function(prompt: object, stub: str) -> None:
    assert stub_of(prompt, "area") == stub


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("    return r * r\n", ["    return r * r"]),
        ("return r * r", ["    return r * r"]),
        ("x = r\n    return x * r", ["    x = r", "    return x * r"]),
        ("x = r\nreturn x * r", ["    x = r", "    return x * r"]),
        ("if r:\n        return 1\n    return 0", ["    if r:", "        return 1", "    return 0"]),
        ("if r:\n    return 1\nreturn 0", ["    if r:", "        return 1", "    return 0"]),
        ("\n    return r\n\nprint(area(1))\n# Next", ["    return r", ""]),
    ],
)
def test_a_body_goes_on_with_the_function(body: str, lines: list[str]) -> None:
    assert completed(body, STUB, "area") == Program("\n".join([STUB.rstrip(), *lines, ""]))


def test_a_program_that_defines_the_function_comes_after_the_stub() -> None:
    for program in ("def area(r): return r", "area = lambda r: r", "from shapes import area", "async def area(r): ..."):
        assert completed(program, STUB, "area") == Program(program, before=STUB)
    assert completed("def area(r): return r", "", "area") == Program("def area(r): return r")
    assert completed("print(area(1))", STUB, "area").before == ""
