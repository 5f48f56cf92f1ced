"""No file, class or function of the packages grows beyond the size at which it should become two."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_FILE_LINES = 350
MAX_CLASS_LINES = 250
MAX_MEDIAN_FUNCTION_LINES = 10
MAX_95TH_PERCENTILE_FUNCTION_LINES = 40

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    """The files of all packages, without what protoc generates."""
    found = [
        path
        for package in ("reward_server", "grpo_plugin", "packed_attention")
        for path in (ROOT / package).rglob("*.py")
    ]
    return sorted(path for path in found if "v1" not in path.relative_to(ROOT).parts)


def lines_of(*kinds: type[ast.AST]) -> Iterator[tuple[int, str]]:
    """The number of lines of every class or function, signature and docstring included, and where it is."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds):
                assert isinstance(node, ast.ClassDef | Function)
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                yield lines, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    too_long = {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES}
    assert not too_long, f"files of more than {MAX_FILE_LINES} lines: {too_long}"


def test_no_class_is_too_long() -> None:
    too_long = [(lines, where) for lines, where in lines_of(ast.ClassDef) if lines > MAX_CLASS_LINES]
    assert not too_long, f"classes of more than {MAX_CLASS_LINES} lines: {too_long}"


def test_functions_are_short() -> None:
    functions = sorted(lines_of(ast.FunctionDef, ast.AsyncFunctionDef))
    lengths = [lines for lines, _ in functions]
    percentile = statistics.quantiles(lengths, n=20)[-1]
    longest = [f"{lines} lines: {where}" for lines, where in functions[-20:]]
    assert statistics.median(lengths) <= MAX_MEDIAN_FUNCTION_LINES
    assert percentile <= MAX_95TH_PERCENTILE_FUNCTION_LINES, "\n".join(longest)
