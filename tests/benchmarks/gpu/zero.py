"""Three steps under DeepSpeed ZeRO-2 and ZeRO-3 on one rank, by the shipped configurations, with a served reward."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reward_server.launch import launch_server
from tests.benchmarks.updates.cases import SMALL

_ROOT = Path(__file__).parents[3]
_DEADLINE_S = 300
_STATUS = "reward/status/"
STEPS = 3


@dataclass(frozen=True)
class Trained:
    """What a run under one ZeRO stage came to."""

    stage: int
    exit_code: int | None  # None: it had not ended after five minutes
    steps: int
    groups: float  # that the service scored, a step
    statuses: dict[str, float]  # how many scores were not OK, by status, over all steps
    output: str  # its last lines

    @property
    def held(self) -> bool:
        return self.exit_code == 0 and self.steps == STEPS and self.groups > 0 and not self.statuses


def run(device: str, folder: Path) -> list[Trained]:
    """Both stages, side by side: nothing is timed."""
    model = SMALL.save(folder / "model")
    rows = [{"prompt": f"{number} and {number}"} for number in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scorers = [{"type": "length", "name": "length", "max": 8}]
    with launch_server({"scorers": scorers}, log_path=folder / "server.log") as server:
        started = [(stage, _start(stage, device, model, server.endpoint, folder)) for stage in (2, 3)]
        return [_ended(stage, process, folder) for stage, process in started]


def _start(stage: int, device: str, model: str, endpoint: str, folder: Path) -> subprocess.Popen[str]:
    settings = {
        "model_name_or_path": model,
        "dataset_name": str(folder / "rows.jsonl"),
        "output_dir": str(folder / f"zero{stage}"),
        "reward_endpoint": endpoint,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": device == "cuda",
    }
    (folder / f"zero{stage}.yaml").write_text(yaml.safe_dump(settings))
    accelerate = f"zero{stage}.yaml" if device == "cuda" else f"cpu_zero{stage}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--config_file"]
    command += [str(_ROOT / "configs" / "accelerate" / accelerate), "-m", "grpo_plugin.train"]
    command += ["--config", str(folder / f"zero{stage}.yaml")]
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    on_cpu = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} if device == "cpu" else {}
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path, **on_cpu},
        stdout=(folder / f"zero{stage}.log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
    )


def _ended(stage: int, process: subprocess.Popen[str], folder: Path) -> Trained:
    try:
        code: int | None = process.wait(_DEADLINE_S)
    except subprocess.TimeoutExpired:
        code = None
        process.kill()
        process.wait()
    logged = _logged(folder / f"zero{stage}" / "metrics.jsonl")
    output = (folder / f"zero{stage}.log").read_text()[-2000:]
    groups = min((line.get("reward/groups", 0.0) for line in logged), default=0.0)
    return Trained(stage, code, len(logged), groups, _statuses(logged), output)


def _statuses(logged: list[dict[str, Any]]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for line in logged:
        counts.update({name.removeprefix(_STATUS): value for name, value in line.items() if name.startswith(_STATUS)})
    return {name: count for name, count in counts.items() if count}


def _logged(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if "reward" in line]
