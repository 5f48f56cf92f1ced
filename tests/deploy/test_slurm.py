"""The job script: one node serves, the others train. Slurm's commands are stand-ins that run what they are given."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Certificates

SCRIPT = Path(__file__).parents[2] / "configs" / "deploy" / "slurm" / "train.sbatch"
BIN = Path(sys.executable).parent

COMMANDS = {
    "scontrol": "#!/bin/sh\necho localhost\necho 127.0.0.1\n",
    # Takes its own options off, and runs the rest as rank 0 of a node.
    "srun": '#!/bin/bash\nwhile [[ ${1-} == -* ]]; do shift; done\nSLURM_PROCID=0 exec "$@"\n',
    # Writes down what a launcher would get, and runs the script.
    "accelerate": f"""#!{sys.executable}
import json, os, subprocess, sys
script = next(index for index, word in enumerate(sys.argv) if word.endswith(".py"))
open(os.environ["LAUNCHED"], "w").write(json.dumps(sys.argv[1:script]))
raise SystemExit(subprocess.run([sys.executable, *sys.argv[script:]]).returncode)
""",
}
TRAINING = """
import json, os, sys
from reward_server.client import ClientTLS, RewardClient
from reward_server.errors import CredentialsError
from reward_server.types import Completion, Group
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
endpoint = options["--reward_endpoint"]
tls = ClientTLS(options["--reward_tls_ca"]) if "--reward_tls_ca" in options else None
group = Group("p", (Completion("ab"), Completion("abcdef")))
with RewardClient(endpoint, timeout_s=20, tls=tls) as client:
    scores = [score.value for score in client.score(group).scorers[0].scores]
with RewardClient(endpoint, token="somebody-elses", timeout_s=20, tls=tls) as client:
    try:
        client.score(group)
        scores = None
    except CredentialsError:
        pass
open("scores.json", "w").write(json.dumps([scores, sys.argv[1], endpoint]))
raise SystemExit(int(os.environ.get("ENDS_WITH", "0")))
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
def job(tmp_path: Path) -> Any:
    """Runs the script as Slurm would, in a folder with a configuration and a script to train."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    (work / "reward.yaml").write_text(json.dumps({"scorers": [{"type": "length", "name": "short", "max": 3}]}))
    (work / "train.py").write_text(TRAINING)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "REWARD_TOKEN"},
        "PATH": os.pathsep.join([str(commands), str(BIN), os.environ["PATH"]]),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_GPUS_ON_NODE": "8",
        "REWARD_PORT": str(free_port()),
        "LAUNCHED": str(tmp_path / "launched.json"),
    }

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), *arguments],
            cwd=work,
            env={**environment, **changes},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    run.work, run.launched, run.port = work, tmp_path / "launched.json", environment["REWARD_PORT"]  # type: ignore[attr-defined]
    return run


def is_served(port: str) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", int(port))) == 0


def test_the_trainers_find_the_service_and_it_ends_with_the_job(job: Any) -> None:
    done = job("train.py", "two words")
    assert done.returncode == 0, done.stderr
    scores, argument, endpoint = json.loads((job.work / "scores.json").read_text())
    assert scores == [1.0, 0.0]
    assert argument == "two words"
    assert endpoint == f"localhost:{job.port}"
    launched = json.loads(job.launched.read_text())
    options = dict(zip(launched[1::2], launched[2::2], strict=True))
    assert launched[0] == "launch"
    assert options == {
        "--config_file": "configs/accelerate/multi_node.yaml",
        "--num_machines": "1",
        "--num_processes": "8",
        "--machine_rank": "0",
        "--main_process_ip": "127.0.0.1",
        "--main_process_port": "29500",
    }
    assert not is_served(job.port)
    assert sorted(path.name for path in job.work.iterdir()) == ["reward.yaml", "scores.json", "train.py"]


def test_the_job_ends_as_training_ended_and_then_the_services_log_is_left(job: Any) -> None:
    done = job("train.py", "x", ENDS_WITH="3")
    assert done.returncode == 3
    assert not is_served(job.port)
    (log,) = job.work.glob("reward-7-*.log")
    assert log.read_text().startswith("serving ")
    assert f"the log of the reward service: {log}" in done.stderr
    assert log.stat().st_mode & 0o077 == 0
    assert {path.name for path in job.work.iterdir()} == {"reward.yaml", "scores.json", "train.py", log.name}


def test_with_a_ca_the_script_and_the_trainers_ask_with_tls(job: Any, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    config = json.loads((job.work / "reward.yaml").read_text())
    (job.work / "reward.yaml").write_text(json.dumps({**config, "tls": certificates.server("good")}))
    done = job("train.py", "x", REWARD_TLS_CA=certificates.path("ca.pem"))
    assert done.returncode == 0, done.stderr
    assert json.loads((job.work / "scores.json").read_text())[0] == [1.0, 0.0]
    (job.work / "reward.yaml").write_text(json.dumps(config))
    refused = job("train.py", "x", REWARD_TLS_CA=certificates.path("ca.pem"))
    assert refused.returncode == 1
    assert "can be reached from other machines" in refused.stderr


def test_a_service_that_cannot_start_ends_the_job_with_its_last_line(job: Any) -> None:
    (job.work / "reward.yaml").write_text(json.dumps({"scorers": [{"type": "lenth", "name": "short"}]}))
    done = job("train.py", "x")
    assert done.returncode == 1
    assert "did you mean 'length'" in done.stderr
    assert not job.launched.exists()


def test_a_server_of_somebody_else_on_the_port_is_not_trained_against(job: Any, serve: Any) -> None:
    theirs = serve({"type": "length", "name": "theirs", "max": 9}, listen="127.0.0.1:0")
    done = job("train.py", "x", REWARD_PORT=theirs.endpoint.rpartition(":")[2])
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert not job.launched.exists()


def test_a_service_that_is_never_ready_ends_the_job_with_the_reason(job: Any) -> None:
    srun = job.work.parent / "bin" / "srun"
    srun.write_text("#!/bin/sh\necho 'step creation temporarily disabled, retrying'\nexec sleep 60\n")
    done = job("train.py", "x", REWARD_WAIT_S="1")
    assert done.returncode == 1
    assert "the reward service did not serve within 1 s: step creation temporarily disabled, retrying\n" in done.stderr
    assert not job.launched.exists()


def test_without_a_script_it_says_what_to_give(job: Any) -> None:
    done = job()
    assert done.returncode == 2
    assert "sbatch train.sbatch SCRIPT" in done.stderr


def test_the_script_may_be_run() -> None:
    assert SCRIPT.stat().st_mode & stat.S_IXUSR
