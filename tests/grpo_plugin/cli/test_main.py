"""The command `grpo`: help at once, exit codes, one line for an error."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from grpo_plugin.cli.main import main


def test_help_loads_neither_torch_nor_trl() -> None:
    code = (
        "import sys\n"
        "from grpo_plugin.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as exit:\n    assert exit.code == 0\n"
        "print(sorted({'torch', 'trl', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "quickstart" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"grpo-plugin {project['version']}\n"


@pytest.mark.parametrize("arguments", [[], ["trian"], ["plot"], ["quickstart", "--seed", "x"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: grpo" in capsys.readouterr().err


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: there is no run folder")
    assert error.count("\n") == 1


def test_the_command_is_installed_and_tells_its_exit_code(tmp_path: Path) -> None:
    grpo = Path(sys.executable).parent / "grpo"
    done = subprocess.run([grpo, "plot", tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "has no rewards to draw" in done.stderr
