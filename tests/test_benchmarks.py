"""The benchmarks load: what they take from the project and from tests is still there. Running them is for people."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_loads_and_says_how_it_is_called(name: str) -> None:
    module = importlib.import_module(f"tests.benchmarks.{name}")
    assert f"python tests/benchmarks/{name}.py" in (module.__doc__ or "")
    assert callable(module.main)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_that_takes_from_tests_finds_them_when_it_is_started_as_a_script(name: str) -> None:
    lines = (FOLDER / f"{name}.py").read_text().splitlines()
    takes = [number for number, line in enumerate(lines) if line.strip().startswith(("from tests.", "import tests"))]
    finds = [number for number, line in enumerate(lines) if line.startswith("sys.path.")]
    assert not takes or (finds and finds[0] < takes[0])
