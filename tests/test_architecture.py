"""The arrows between the rooms go one way, and the light part stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A room may import these rooms of ours and no others. Rooms that are missing here may import any of their package.
ALLOWED = {
    "reward_server/types.py": set(),
    "reward_server/errors.py": set(),
    "reward_server/wire.py": {"types", "errors", "v1"},
    "reward_server/client": {"wire", "types", "errors", "v1", "client", "tracing"},
    "reward_server/launch.py": {"client", "types", "errors"},
    "reward_server/supervise.py": {"launch", "errors"},
    "reward_server/scorers": {"scorers", "types", "errors", "sandbox"},
    "reward_server/sandbox": {"sandbox", "processes"},
    "reward_server/tasks.py": set(),
    "reward_server/threads.py": set(),
    "reward_server/child.py": {"processes"},
    "reward_server/selftest.py": {"errors", "scoring", "types"},
    "reward_server/reload.py": {"config", "errors", "scoring", "selftest", "types"},
    "reward_server/fleet.py": {
        "addresses",
        "child",
        "config",
        "errors",
        "logs",
        "metrics",
        "processes",
        "reload",
        "security",
        "server",
        "supervise",
        "tasks",
        "types",
        "wire",
    },
    "reward_server/quarantine.py": {"results", "types"},
    "reward_server/workers.py": {
        "child",
        "scorers",
        "types",
        "errors",
        "worker_process",
        "results",
        "processes",
        "fair",
    },
    "reward_server/store.py": set(),
    "reward_server/entries.py": {"results", "scorers", "types"},
    "reward_server/cache.py": {"entries", "store", "results", "scorers", "types", "errors"},
    "reward_server/composing.py": {"results", "scorers", "types"},
    "reward_server/fair.py": set(),
    "reward_server/tracing.py": set(),
    "reward_server/metrics.py": {"addresses", "config", "errors", "results"},
    "reward_server/records.py": {"config", "errors", "types"},
    "reward_server/logs.py": set(),
    "reward_server/shares.py": set(),
    "reward_server/batch_queue.py": {"shares"},
    "reward_server/batcher.py": {"batch_queue"},
    "reward_server/thread_pool.py": {"fair", "results", "types"},
}
# The same for the trainer's: pure parts below, TRL's trainer in layers above.
PLUGIN_ALLOWED = {
    "grpo_plugin/batches.py": set(),
    "grpo_plugin/packing.py": set(),
    "grpo_plugin/policies.py": set(),
    "grpo_plugin/exactness.py": set(),
    "grpo_plugin/survivors.py": {"policies"},
    "grpo_plugin/windows.py": {"batches", "survivors"},
    "grpo_plugin/step_metrics.py": {"windows"},
    "grpo_plugin/forwards.py": {"batches", "packing", "windows"},
    "grpo_plugin/step.py": {
        *("batches", "config", "exactness", "forwards", "step_metrics", "survivors", "windows"),
    },
    "grpo_plugin/kl.py": {"config", "step"},
    "grpo_plugin/leaving.py": {"failures", "kl", "survivors"},
    "grpo_plugin/ahead.py": {"config", "groups", "leaving", "rewards"},
}
PLUGIN_SEES = {"client", "launch", "supervise", "types", "errors", "tracing"}


def files(room: str) -> list[Path]:
    path = ROOT / room
    return [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


def imported_rooms(path: Path, package: str) -> set[str]:
    """The first names under `package` that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            names = [f"{package}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    for path in files(room):
        extra = imported_rooms(path, "reward_server") - ALLOWED[room] - {"__version__"}
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


@pytest.mark.parametrize("room", PLUGIN_ALLOWED)
def test_a_room_of_the_trainer_imports_only_the_rooms_below_it(room: str) -> None:
    extra = imported_rooms(ROOT / room, "grpo_plugin") - PLUGIN_ALLOWED[room]
    assert not extra, f"{room} imports {sorted(extra)}"


def test_the_server_never_imports_the_plugin() -> None:
    for path in files("reward_server"):
        assert not imported_rooms(path, "grpo_plugin"), path
        assert "import grpo_plugin" not in path.read_text(), path


def test_the_plugin_sees_of_the_server_only_its_light_part() -> None:
    for path in files("grpo_plugin"):
        extra = imported_rooms(path, "reward_server") - PLUGIN_SEES
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


@pytest.mark.parametrize("module", ["reward_server.client", "reward_server.launch", "grpo_plugin", "grpo_plugin.cli"])
def test_the_light_part_loads_neither_torch_nor_trl_nor_httpx(module: str) -> None:
    heavy = ("torch", "trl", "transformers", "opentelemetry", "prometheus_client", "httpx")
    code = f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


def test_what_runs_inside_a_sandbox_imports_nothing_but_the_standard_library_and_its_own_folder() -> None:
    for path in files("reward_server/sandbox/inside"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                is_own = name.startswith("reward_server.sandbox.inside")
                assert is_own or name.split(".")[0] in sys.stdlib_module_names, f"{path} imports {name}"


def test_only_the_wire_touches_message_fields() -> None:
    for path in files("reward_server"):
        if path.parent.name == "v1" or path.name == "wire.py":
            continue
        text = path.read_text()
        for field in ("columns_json", "extra_json", "CopyFrom", "WhichOneof", "HasField"):
            assert field not in text, f"{path.relative_to(ROOT)} touches {field}"
