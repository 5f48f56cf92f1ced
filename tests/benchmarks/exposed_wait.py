"""How long a training step stands still for its rewards: stock TRL against this trainer, side by side in one run.

The scorer takes a fixed time a group (asynchronously, as a judge would), below the time of the reference model's pass.
Stock TRL calls the same function after that pass and waits all of it; this trainer submits before it. Rounds alternate;
the medians over all generations but each round's first are printed. A latency above the pass shows what is left over.

    python tests/benchmarks/exposed_wait.py [--latency-s 0.1] [--steps 4] [--rounds 2]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from reward_server.launch import launch_server

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.builders import make_tokenizer

COMMON = {
    "per_device_train_batch_size": 16,
    "num_generations": 8,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 48,
    "beta": 0.04,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "disable_tqdm": True,
}


def make_scorer(latency_s: float) -> Any:
    async def slow_length(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(latency_s)
        return [float(len(completion)) for completion in completions]

    return slow_length


class Timed:
    """Times the log-probability passes and the reward call of a trainer, whichever it is."""

    def __init__(self, trainer: Any):
        self.log_probs_s: list[float] = []
        self.rewards_s: list[float] = []
        passes, rewards = trainer._get_per_token_logps_and_entropies, trainer._calculate_rewards

        def timed_passes(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = passes(*args, **kwargs)
            if not torch.is_grad_enabled():
                self.log_probs_s.append(time.perf_counter() - began)
            return result

        def timed_rewards(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = rewards(*args, **kwargs)
            self.rewards_s.append(time.perf_counter() - began)
            return result

        trainer._get_per_token_logps_and_entropies, trainer._calculate_rewards = timed_passes, timed_rewards


def save_model(folder: Path) -> str:
    tokenizer = make_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=None,  # every completion has the full length, so that every step has the same work
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(cls: type, args: Any, model: str, reward: Any, steps: int) -> tuple[float, float]:
    """The median seconds of a generation's log-probability pass and of its wait for rewards."""
    data = Dataset.from_dict({"prompt": [f"a prompt of some length, number {index}" for index in range(64)]})
    trainer = cls(model, reward_funcs=reward, args=args, train_dataset=data)
    timed = Timed(trainer)
    trainer.train()
    passes = timed.log_probs_s
    assert len(passes) == len(timed.rewards_s), "one pass a generation: the reference model's"
    waits = timed.rewards_s
    if isinstance(trainer, RemoteGRPOTrainer):
        waits = [log["reward/exposed_wait_s"] for log in trainer.state.log_history if "reward/exposed_wait_s" in log]
        trainer.close()
    return statistics.median(passes[1:]), statistics.median(waits[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-s", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the service has the other core
    with tempfile.TemporaryDirectory() as name:
        model = save_model(Path(name) / "model")
        config = {
            "scorers": [
                {
                    "type": "function",
                    "name": "slow_length",
                    "function": f"{__file__}:make_scorer",
                    "factory": True,
                    "kwargs": {"latency_s": options.latency_s},
                    "place": "loop",
                }
            ]
        }
        results: dict[str, list[tuple[float, float]]] = {"stock TRL": [], "grpo-plugin": []}
        with launch_server(config) as server:
            for _ in range(options.rounds):
                common = {**COMMON, "max_steps": options.steps}
                stock = GRPOConfig(f"{name}/stock", **common)
                scorer = make_scorer(options.latency_s)
                results["stock TRL"].append(run(GRPOTrainer, stock, model, scorer, options.steps))
                ours = RemoteGRPOConfig(f"{name}/ours", reward_endpoint=[server.endpoint], **common)
                results["grpo-plugin"].append(run(RemoteGRPOTrainer, ours, model, None, options.steps))
    print(
        f"\nscorer latency {options.latency_s:.3f} s a group, 2 groups of 8 a step, medians of {options.rounds} rounds"
    )
    print(f"{'':14}{'log-prob passes':>18}{'exposed wait':>15}{'of the latency':>17}")
    for who, rounds in results.items():
        passes_s, wait_s = (statistics.median(values) for values in zip(*rounds, strict=True))
        print(f"{who:14}{passes_s:16.3f} s{wait_s:13.4f} s{wait_s / options.latency_s:16.1%}")


if __name__ == "__main__":
    main()
