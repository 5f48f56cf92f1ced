"""A training run goes on through the death of its service, in every phase of a step, with the weights of a calm run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import TrainerCallback

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from tests.support.builders import make_dataset
from tests.support.processes import descendants, is_alive, wait_until
from tests.support.replicas import Replica, Replicas
from tests.support.servers import broken, made

pytestmark = pytest.mark.slow

PHASES = ("generation", "log-probs", "collect", "update")
TIMEOUT_S = 30.0
ARGS = {
    "max_steps": 3,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 12,
    "learning_rate": 1e-2,
    "beta": 0.04,  # so that there is a phase of (reference) log-probabilities
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "reward_timeout_s": TIMEOUT_S,
}
SCORER = made("slow_length", seconds=0.3)

Weights = dict[str, torch.Tensor]


def make_trainer(model: str, folder: Path, **args: Any) -> RemoteGRPOTrainer:
    config = RemoteGRPOConfig(str(folder / "run"), **{**ARGS, **args})
    return RemoteGRPOTrainer(model, args=config, train_dataset=make_dataset())


def train(trainer: RemoteGRPOTrainer) -> Weights:
    try:
        trainer.train()
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}
    finally:
        trainer.close()


def config_file(folder: Path, *scorers: dict[str, Any]) -> str:
    path = folder / "reward.yaml"
    path.write_text(yaml.safe_dump({"scorers": list(scorers), "workers": 2}))
    return str(path)


@pytest.fixture(scope="module")
def calm(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("calm")
    return train(make_trainer(tiny_model, folder, reward_config=config_file(folder, SCORER)))


def at_phase(trainer: Any, phase: str, step: int, act: Callable[[], None]) -> None:
    """Has `act` called once, when the run enters the phase of the step (counted from 0)."""
    done: list[None] = []

    def once() -> None:
        if trainer.state.global_step == step and not done:
            done.append(None)
            act()

    class BeforeUpdate(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            once()

    if phase == "update":
        trainer.add_callback(BeforeUpdate())
        return
    name = {
        "generation": "_generate",
        "log-probs": "_get_per_token_logps_and_entropies",
        "collect": "_calculate_rewards",
    }[phase]
    method = getattr(trainer, name)

    def entering(*args: Any, **kwargs: Any) -> Any:
        once()
        return method(*args, **kwargs)

    setattr(trainer, name, entering)


def assert_nothing_failed(trainer: Any, steps: int) -> None:
    logs = [log for log in trainer.state.log_history if "reward/groups" in log]
    assert len(logs) == steps
    assert not [name for log in logs for name in log if name.startswith("reward/status") or name == "reward/dropped"]
    assert max(log["reward/exposed_wait_s"] for log in logs) < TIMEOUT_S


@pytest.mark.parametrize("phase", PHASES)
def test_the_embedded_service_may_die_in_any_phase_of_a_step(
    tiny_model: str, tmp_path: Path, calm: Weights, phase: str
) -> None:
    trainer = make_trainer(tiny_model, tmp_path, reward_config=config_file(tmp_path, SCORER))
    assert trainer._connection is not None
    server = trainer._connection.server
    assert server is not None
    at_phase(trainer, phase, 1, lambda: os.kill(server.pid, signal.SIGKILL))
    weights = train(trainer)
    assert server.restarts == 1
    assert_nothing_failed(trainer, 3)
    assert all(torch.equal(weights[name], calm[name]) for name in calm)


@contextmanager
def killed_at_random(replicas: list[Replica]) -> Iterator[list[int]]:
    """Kills each replica again and again, at random times, and starts it again; the numbers of those it killed."""
    stop, killed = threading.Event(), []

    def disturb(number: int) -> None:
        chance = random.Random(number)
        while not stop.wait(chance.uniform(0.5, 2.5)):
            killed.append(number)
            replicas[number].kill()
            replicas[number].start()

    threads = [threading.Thread(target=disturb, args=(number,)) for number in range(len(replicas))]
    for thread in threads:
        thread.start()
    try:
        yield killed
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_run_with_replicas_killed_and_restarted_at_random_ends_with_the_weights_of_a_calm_run(
    tiny_model: str, tmp_path: Path, replicas: Replicas
) -> None:
    both = replicas(2, SCORER)
    args = {"reward_endpoint": [replica.endpoint for replica in both], "max_steps": 10}
    calm = train(make_trainer(tiny_model, tmp_path, **args))
    trainer = make_trainer(tiny_model, tmp_path, **args)
    assert trainer._connection is not None
    counts = trainer._connection.client.counts
    with killed_at_random(both) as killed:
        weights = train(trainer)
    assert len(killed) >= 3
    assert counts.retries > 0
    assert_nothing_failed(trainer, 10)
    assert all(torch.equal(weights[name], calm[name]) for name in calm)


TRAINER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.faults.test_trainer_faults import make_trainer
if __name__ == "__main__":
    trainer = make_trainer({model!r}, Path({folder!r}), reward_config={config!r}, max_steps=1000)
    print("server", trainer._connection.server.pid, flush=True)
    trainer.train()
"""


def test_the_embedded_service_is_gone_within_5_s_of_a_trainer_killed_with_kill_9(
    tiny_model: str, tmp_path: Path
) -> None:
    script = tmp_path / "trainer.py"
    names = {
        "root": str(Path(__file__).parents[2]),
        "model": tiny_model,
        "folder": str(tmp_path),
        "config": config_file(tmp_path, broken("hangs"), SCORER),
    }
    script.write_text(TRAINER.format(**names))
    with (tmp_path / "log").open("w") as log:
        trainer = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert trainer.stdout is not None
        pid = next(int(line.split()[1]) for line in trainer.stdout if line.startswith("server "))
        family = descendants(trainer.pid)
        assert pid in family
        assert len(family) >= 2  # the server and its workers
        time.sleep(0.5)  # it trains
    finally:
        trainer.kill()
        trainer.wait(10)
    assert wait_until(lambda: not any(map(is_alive, family)), 5)
    trainer.stdout.close()
