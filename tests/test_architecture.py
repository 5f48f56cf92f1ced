"""The arrows between the rooms go one way, and the light part stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each room of `reward_server` may import of its siblings: the arrows of the map, all downwards.
VALUES = {"types", "errors"}
ARROWS = {
    "types": set(),
    "errors": set(),
    "v1": set(),
    "wire": VALUES | {"v1"},
    "addresses": VALUES,
    "processes": VALUES,
    "sandbox": VALUES | {"processes"},
    "scorers": VALUES | {"sandbox"},
    "config": VALUES | {"addresses", "scorers"},
    "execution": VALUES | {"processes", "scorers"},
    "observability": VALUES | {"addresses", "config", "execution"},
    "cache": VALUES | {"config", "execution", "scorers"},
    "client": VALUES | {"observability", "v1", "wire"},
    "launch": VALUES | {"client", "processes"},
    "serving": VALUES
    | {"addresses", "cache", "config", "execution", "launch", "observability", "processes", "scorers", "v1", "wire"},
    "evaluation": VALUES | {"client", "config", "observability", "scorers", "serving"},
    "view": VALUES | {"config", "evaluation", "observability"},
    "cli": VALUES
    | {"evaluation", "view", "addresses", "client", "config", "launch", "observability", "scorers", "serving"},
}
# Rooms that see less of a sibling than the whole of it.
PARTS = {
    "reward_server/client": {"observability": {"tracing"}},
}
PLUGIN_ARROWS = {
    "errors": set(),
    "config": {"errors", "rewards"},
    "batching": {"config", "errors", "rewards"},
    "rewards": {"config", "errors"},
    "trainer": {"batching", "config", "errors", "rewards"},
    "cli": {"config", "errors", "trainer", "train"},
    "train": {"cli", "config", "errors", "trainer"},
}
PLUGIN_SEES = {"client", "launch", "types", "errors", "observability"}


def files_of(package: str, room: str) -> list[Path]:
    path = ROOT / package / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


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


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_of_the_server_imports_only_the_rooms_below_it(room: str) -> None:
    for path in files_of("reward_server", room):
        extra = imported_rooms(path, "reward_server") - ARROWS[room] - {room, "__version__"}
        assert not extra, f"{path.relative_to(ROOT)}: {room} must not import {sorted(extra)}"


@pytest.mark.parametrize("room", PLUGIN_ARROWS)
def test_a_room_of_the_plugin_imports_only_the_rooms_below_it(room: str) -> None:
    for path in files_of("grpo_plugin", room):
        extra = imported_rooms(path, "grpo_plugin") - PLUGIN_ARROWS[room] - {room}
        assert not extra, f"{path.relative_to(ROOT)}: {room} must not import {sorted(extra)}"


@pytest.mark.parametrize(("package", "arrows"), [("reward_server", ARROWS), ("grpo_plugin", PLUGIN_ARROWS)])
def test_every_room_is_on_the_map(package: str, arrows: dict[str, set[str]]) -> None:
    rooms = {
        path.stem for path in (ROOT / package).iterdir() if path.name not in ("__init__.py", "__pycache__", "py.typed")
    }
    assert rooms == set(arrows)


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
