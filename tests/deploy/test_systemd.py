"""The systemd unit: systemd reads it without a remark, and its commands run, reload and stop a real server."""

from __future__ import annotations

import configparser
import json
import shlex
import subprocess
import sys
from pathlib import Path

from reward_server.config import ServerConfig
from tests.support.processes import wait_until
from tests.support.tools import tool

UNIT = Path(__file__).parents[2] / "configs" / "deploy" / "systemd" / "reward-server.service"
BIN = Path(sys.executable).parent


class Unit(configparser.ConfigParser):
    """Keys as they are written; of one that occurs again the last counts."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def service() -> configparser.SectionProxy:
    unit = Unit(strict=False, interpolation=None, comment_prefixes=("#",))
    unit.read(UNIT)
    return unit["Service"]


def test_systemd_has_nothing_to_say_of_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/reward/bin/reward-server", sys.executable))
    command = [tool("systemd-analyze", "apt-get install systemd"), "verify", "--man=no", str(copy)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = [line for line in (run.stdout + run.stderr).splitlines() if UNIT.name in line]
    assert said == []


def test_calls_get_their_time_when_it_stops() -> None:
    drain_grace_s = ServerConfig.model_fields["drain_grace_s"].default
    assert float(service()["TimeoutStopSec"]) > drain_grace_s
    assert service()["KillMode"] == "mixed"  # SIGTERM to the server alone, not to its workers


def test_its_commands_start_reload_and_stop_a_server(tmp_path: Path) -> None:
    config, log = tmp_path / "reward.yaml", tmp_path / "log"
    scorer = {"type": "length", "name": "short", "max": 3}
    config.write_text(json.dumps({"scorers": [scorer], "listen": "127.0.0.1:0"}))
    start = service()["ExecStart"].replace("/opt/reward/bin", str(BIN))
    command = shlex.split(start.replace("/etc/reward-server", str(tmp_path)))
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
    try:
        assert wait_until(lambda: "serving" in log.read_text(), 30), log.read_text()
        config.write_text(json.dumps({"scorers": [{**scorer, "max": 4}], "listen": "127.0.0.1:0"}))
        reload = shlex.split(service()["ExecReload"].replace("$MAINPID", str(server.pid)))
        subprocess.run(reload, check=True, timeout=10)
        assert wait_until(lambda: "in place of" in log.read_text(), 30), log.read_text()
        server.terminate()
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
