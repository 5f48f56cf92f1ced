"""What a step costs with scores that take longer than the step's own work: on policy, and with score_ahead.

The scorer takes a fixed time a group, asynchronously, as a judge would. C is a step's own work, measured with a scorer
that answers at once; L the latency. On policy a step costs about L + C, less what log-probabilities hide; one batch
ahead, the longer of the two. Rounds alternate, and medians leave out the first two steps.

    python tests/benchmarks/score_ahead.py [--latencies 0.5,1,2] [--steps 8] [--rounds 2]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from reward_server.launch import launch_server

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.exposed_wait import COMMON, save_model


class StepTimes(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    def median_s(self) -> float:
        return statistics.median(b - a for a, b in zip(self.ends[1:], self.ends[2:], strict=False))


def scorer(latency_s: float) -> dict[str, Any]:
    function = f"{Path(__file__).parent / 'exposed_wait.py'}:make_scorer"
    options = {"factory": True, "kwargs": {"latency_s": latency_s}, "place": "loop"}
    return {"scorers": [{"type": "function", "name": "slow_length", "function": function, **options}]}


def run(folder: str, model: str, endpoint: str, steps: int, score_ahead: int) -> float:
    # One generation a step, so that a step's work and a batch's latency stand side by side.
    common = {**COMMON, "steps_per_generation": 1, "gradient_accumulation_steps": 1, "max_steps": steps}
    args = RemoteGRPOConfig(f"{folder}/run", reward_endpoint=[endpoint], score_ahead=score_ahead, **common)
    data = Dataset.from_dict({"prompt": [f"a prompt of some length, number {index}" for index in range(256)]})
    times = StepTimes()
    trainer = RemoteGRPOTrainer(model, args=args, train_dataset=data, callbacks=[times])
    trainer.train()
    trainer.close()
    return times.median_s()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latencies", default="0.5,1,2")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the service has the other core
    latencies = [0.0, *map(float, options.latencies.split(","))]
    found: dict[tuple[float, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        model = save_model(Path(name) / "model")
        for _ in range(options.rounds):
            for latency_s in latencies:
                with launch_server(scorer(latency_s)) as server:
                    for ahead in (0, 1):
                        seconds = run(name, model, server.endpoint, options.steps, ahead)
                        found.setdefault((latency_s, ahead), []).append(seconds)
    work_s = statistics.median(found[0.0, 1])
    print(f"\na step's own work, C: {work_s:.2f} s")
    print(f"{'latency L':>10}{'on policy':>12}{'ahead':>10}{'max(L, C)':>12}{'ratio':>8}")
    for latency_s in latencies[1:]:
        on_policy_s, ahead_s = (statistics.median(found[latency_s, ahead]) for ahead in (0, 1))
        bound_s = max(latency_s, work_s)
        print(f"{latency_s:9.2f}s{on_policy_s:11.2f}s{ahead_s:9.2f}s{bound_s:11.2f}s{ahead_s / bound_s:8.2f}")


if __name__ == "__main__":
    main()
