"""The imports between folders go one way, and what a client or trainer loads stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("reward_server", "grpo_plugin", "packed_attention", "tests")

# What each room (a folder or a top-level file) may import of its siblings: whole rooms, or single modules of them.
VALUES = {"types", "errors", "frozen"}
SERVER_ARROWS = {
    "frozen": set(),
    "types": {"frozen"},
    "errors": set(),
    "v1": set(),
    "wire_json": VALUES,
    "wire_text": VALUES | {"wire_json"},
    "wire": VALUES | {"v1", "wire_json", "wire_text"},
    "wire_groups": VALUES | {"v1"},
    "rendezvous": set(),
    "addresses": VALUES,
    "processes": VALUES,
    "sandbox": VALUES | {"processes"},
    "scorers": VALUES | {"sandbox"},
    "config": VALUES | {"addresses", "scorers"},
    "execution": VALUES | {"processes", "scorers"},
    "observability": VALUES | {"addresses", "config", "execution.executors", "execution.results"},
    "cache": VALUES | {"execution.executors", "execution.results", "scorers.base", "scorers.loading"},
    "client": VALUES | {"observability.tracing", "rendezvous", "v1", "wire", "wire_groups"},
    "adapters": VALUES | {"client"},
    "launch": VALUES | {"processes"},
    "supervise": {"launch"},
    "serving": VALUES
    | {
        "addresses",
        "cache",
        "config",
        "execution",
        "observability",
        "processes",
        "rendezvous",
        "scorers",
        "v1",
        "wire",
        "wire_groups",
    },
    "evaluation": VALUES | {"client", "config", "observability", "scorers", "serving"},
    "view": VALUES | {"config", "evaluation", "observability"},
    "ray": VALUES | {"config", "execution", "observability", "scorers", "serving"},
    "cli": VALUES
    | {"evaluation", "view", "addresses", "client", "config", "launch", "observability", "scorers", "serving"},
}
PLUGIN_ARROWS = {
    "errors": set(),
    "config_checks": {
        "config",
        "errors",
        "rewards.policies",
        "rewards.recording",
        "sampling.group_filters",
    },  # config: its type alone
    "sampling_config": set(),
    "config": {"config_checks", "errors", "sampling_config"},
    "policies": {"rewards.policies"},
    "batching": {"config", "errors", "rewards"},
    "rewards": {"config", "errors"},
    "sampling": {"rewards"},
    "trainer": {"batching", "config", "errors", "rewards", "sampling"},
    "cli": {"config", "errors", "trainer", "train"},
    "train": {"cli", "config", "errors", "trainer"},
}
PACKED_ARROWS: dict[str, set[str]] = {
    "segments": set(),
    "varlen": {"segments"},
    "shared_keys": set(),
    "attention": {"segments", "shared_keys", "varlen"},
    "masks": {"attention", "varlen"},
}
PACKAGES = {"reward_server": SERVER_ARROWS, "grpo_plugin": PLUGIN_ARROWS, "packed_attention": PACKED_ARROWS}
# The rooms that may import packed attention: whatever runs a model of texts.
PACK = ("grpo_plugin/batching", "reward_server/scorers")
# What the plugin may import of `reward_server`: the parts that load neither torch nor the server.
PLUGIN_SEES = VALUES | {"client", "launch", "observability.tracing", "observability.records"}


def files(room: str) -> list[Path]:
    """The files of a room: `reward_server/cache`, `reward_server/wire`, or a whole package."""
    path = ROOT / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def imported_modules(path: Path, package: str) -> Iterator[str]:
    """The modules under `package` that a file imports, at any depth of its code: `execution.results`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            modules = [_module_of(node.module, alias.name) for alias in node.names]
        else:
            continue
        yield from (module.partition(".")[2] for module in modules if module.startswith(f"{package}."))


def _module_of(module: str, name: str) -> str:
    """`from module import name` imports a module of that name if there is one."""
    path = ROOT / module.replace(".", "/") / name
    return f"{module}.{name}" if path.is_dir() or path.with_suffix(".py").exists() else module


def check(path: Path, package: str, allowed: set[str]) -> None:
    """Fails with both rooms' names if a file imports what its room may not."""
    importing = ".".join(path.relative_to(ROOT).with_suffix("").parts[:2])
    for module in imported_modules(path, package):
        room = f"{package}.{module.partition('.')[0]}"
        is_allowed = room == importing or any(f"{module}.".startswith(f"{arrow}.") for arrow in allowed)
        assert is_allowed, (
            f"{path.relative_to(ROOT)}: the room {importing} must not import {package}.{module} of the room {room}; "
            f"it may import {', '.join(sorted(allowed)) or 'no sibling'}"
        )


@pytest.mark.parametrize("room", SERVER_ARROWS)
def test_a_room_of_the_server_imports_only_the_rooms_below_it(room: str) -> None:
    for path in files(f"reward_server/{room}"):
        check(path, "reward_server", SERVER_ARROWS[room])


@pytest.mark.parametrize("room", PLUGIN_ARROWS)
def test_a_room_of_the_plugin_imports_only_the_rooms_below_it(room: str) -> None:
    for path in files(f"grpo_plugin/{room}"):
        check(path, "grpo_plugin", PLUGIN_ARROWS[room])


@pytest.mark.parametrize("room", PACKED_ARROWS)
def test_a_file_of_packed_attention_imports_only_the_files_below_it_and_neither_package(room: str) -> None:
    for path in files(f"packed_attention/{room}"):
        check(path, "packed_attention", PACKED_ARROWS[room])
        check(path, "reward_server", set())
        check(path, "grpo_plugin", set())


def test_only_what_runs_models_packs() -> None:
    for path in [*files("reward_server"), *files("grpo_plugin")]:
        if not str(path.relative_to(ROOT)).startswith(PACK):
            check(path, "packed_attention", set())


def test_a_forbidden_import_is_reported_with_the_names_of_both_rooms() -> None:
    path = ROOT / "reward_server" / "serving" / "server.py"  # it imports the service, as a scorer must not
    with pytest.raises(AssertionError, match=r"the room reward_server.serving must not import .* of the room reward_s"):
        check(path, "reward_server", SERVER_ARROWS["scorers"])


@pytest.mark.parametrize(("package", "arrows"), PACKAGES.items())
def test_every_room_is_on_the_map(package: str, arrows: dict[str, set[str]]) -> None:
    rooms = {
        path.stem for path in (ROOT / package).iterdir() if path.name not in ("__init__.py", "__pycache__", "py.typed")
    }
    assert rooms == set(arrows)


def test_every_room_says_what_it_owns_or_does_not_know() -> None:
    for package, arrows in PACKAGES.items():
        for path in (ROOT / package / room / "__init__.py" for room in arrows if room != "v1"):
            if path.exists():
                docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
                says_it = "Owns" in docstring or "Knows nothing" in docstring
                assert says_it, f"{path.relative_to(ROOT)} says neither what the room owns nor what it does not know"


def test_the_server_never_imports_the_plugin() -> None:
    for path in files("reward_server"):
        check(path, "grpo_plugin", set())
        assert "import grpo_plugin" not in path.read_text(), path


def test_the_plugin_sees_of_the_server_only_its_light_part() -> None:
    for path in files("grpo_plugin"):
        check(path, "reward_server", PLUGIN_SEES)


@pytest.mark.parametrize("module", ["reward_server.client", "reward_server.launch", "grpo_plugin", "grpo_plugin.cli"])
def test_the_light_part_loads_neither_torch_nor_trl_nor_httpx(module: str) -> None:
    heavy = ("torch", "trl", "transformers", "opentelemetry", "prometheus_client", "httpx")
    code = f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


def test_nothing_but_its_room_imports_ray() -> None:
    room = ROOT / "reward_server" / "ray"
    importing = re.compile(r"^ *(import|from) (reward_server\.)?ray\b", re.MULTILINE)
    for path in (path for package in PACKAGES for path in files(package)):
        assert room in path.parents or not importing.search(path.read_text()), f"{path.relative_to(ROOT)} imports Ray"
    assert any(importing.search(path.read_text()) for path in files("reward_server/ray"))


def test_what_runs_inside_a_sandbox_imports_nothing_but_the_standard_library_and_its_own_folder() -> None:
    for path in files("reward_server/sandbox/inside"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                is_own = name.startswith("reward_server.sandbox.inside")
                assert is_own or name.split(".")[0] in sys.stdlib_module_names, f"{path} imports {name}"


def test_no_file_imports_a_private_name_of_another() -> None:
    for path in [path for package in OURS for path in files(package)]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
                private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name[1] != "_"]
                assert not private, f"{path.relative_to(ROOT)} imports {private} of {node.module}: make them public"


def test_only_the_wire_touches_message_fields() -> None:
    for path in files("reward_server"):
        if path.parent.name == "v1" or path.name in ("wire.py", "wire_groups.py", "wire_text.py"):
            continue
        text = path.read_text()
        for field in ("columns_json", "extra_json", "CopyFrom", "WhichOneof", "HasField"):
            assert field not in text, f"{path.relative_to(ROOT)} touches {field}"
