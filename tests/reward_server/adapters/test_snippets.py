"""The shipped configurations for other trainers: each names a function that is there, and settings that are read."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from reward_server.adapters.settings import Settings

CONFIGS = Path(__file__).parents[3] / "configs" / "adapters"

# In place of the trainer's command: writes down its arguments and the settings in its environment.
STAND_IN = """#!{python}
import json, os, sys
if sys.argv[1] == "-c":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
settings = {{name: value for name, value in os.environ.items() if name.startswith("REWARD_")}}
print(json.dumps([sys.argv, settings]))
"""

Run = Callable[[str], tuple[list[str], dict[str, str]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a script, and returns the arguments and the environment that its trainer is given."""
    for name in ("python3", "swift"):
        (tmp_path / name).write_text(STAND_IN.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)

    def start(script: str) -> tuple[list[str], dict[str, str]]:
        path = f"{tmp_path}:{os.environ['PATH']}"
        command = ["bash", str(CONFIGS / script), "more=1"]
        done = subprocess.run(
            command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=True
        )
        arguments, environment = json.loads(done.stdout)
        assert arguments[-1] == "more=1"
        return arguments, environment

    return start


def named(path: str) -> Any:
    """The attribute `module.name` or `module:name`."""
    module, _, name = path.replace(":", ".").rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("script", ["verl.sh", "verl_groups.sh"])
def test_verls_overrides_are_settings_and_name_what_the_adapter_has(run: Run, script: str) -> None:
    arguments, _ = run(script)
    values = dict(argument.lstrip("+").split("=", 1) for argument in arguments[3:])
    prefix = "reward.custom_reward_function.reward_kwargs."
    kwargs = {name.removeprefix(prefix): yaml.safe_load(v) for name, v in values.items() if name.startswith(prefix)}
    settings = Settings.read(kwargs, {})
    assert settings.endpoint == ("localhost:50051",)
    assert settings.columns == (("answer", "ground_truth"),)
    if script == "verl.sh":
        kind = "reward.custom_reward_function"
        assert callable(named(f"{values[f'{kind}.path'].removeprefix('pkg://')}.{values[f'{kind}.name']}"))
    else:  # made of verl's own class when verl asks for it
        assert values["reward.reward_manager.name"] == "RemoteRewardManager"
        assert values["reward.reward_manager.module.path"] == "pkg://reward_server.adapters.verl"


@pytest.mark.parametrize("script", ["openrlhf.sh", "slime.sh", "ms_swift.sh"])
def test_the_environment_of_a_script_holds_settings(run: Run, script: str) -> None:
    _, environment = run(script)
    settings = Settings.read({}, environment)
    assert settings.endpoint == ("localhost:50051",)
    assert settings.columns is not None
    assert settings.columns[0][0] == "answer"


def test_the_scripts_name_functions_that_are_there(run: Run) -> None:
    arguments, _ = run("openrlhf.sh")
    file = Path(arguments[arguments.index("--reward.remote_url") + 1])
    assert file == Path(named("reward_server.adapters.openrlhf.__file__"))
    arguments, _ = run("slime.sh")
    assert callable(named(arguments[arguments.index("--custom-rm-path") + 1]))
    arguments, _ = run("ms_swift.sh")
    assert Path(arguments[arguments.index("--external_plugins") + 1]).is_file()
    tables = tomllib.loads((CONFIGS / "verifiers.toml").read_text())
    assert callable(named(tables["env"]["taskset"]["task"]["rewards"]["remote"]["fn"]))


def test_nemo_gyms_configuration_holds_settings() -> None:
    mapping = yaml.safe_load((CONFIGS / "nemo_gym" / "reward.yaml").read_text())
    server = mapping["reward"]["resources_servers"]["reward"]
    assert (CONFIGS / "nemo_gym" / server["entrypoint"]).is_file()
    assert Settings.read(server["reward"], {}).columns == (("answer", "expected_answer"),)


def test_every_shipped_file_is_tested_here() -> None:
    files = {
        str(path.relative_to(CONFIGS))
        for path in CONFIGS.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == {
        *("verl.sh", "verl_groups.sh", "openrlhf.sh", "slime.sh", "ms_swift.sh", "ms_swift_plugin.py"),
        *("nemo_gym/app.py", "nemo_gym/reward.yaml", "verifiers.toml"),
    }
