"""What dynamic_sampling buys and costs: optimizer steps, generated tokens and seconds to a held-out accuracy.

The quickstart's task (sort the letters of a word), in which a share of the prompts is solved: whatever is answered to
them scores 1, so their groups teach nothing. Off, on, and on with oversample start from the same weak policy. The
scorer takes a fixed time a group, asynchronously, as a judge would; the wait for it is given as a share of a step.
Held-out accuracy is greedy, on words that are never solved, every 5 steps; seconds leave that out.

    python tests/benchmarks/dynamic_sampling.py [--solved 0.5,0.9] [--target 0.7] [--latency-s 0.3] [--score-ahead]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from grpo_plugin.cli.quickstart import task
from reward_server.launch import launch_server

sys.path.insert(0, str(Path(__file__).parents[2]))

RUNS: dict[str, dict[str, Any]] = {
    "off": {},
    "on": {"dynamic_sampling": True},
    "on, oversample 1.5": {"dynamic_sampling": True, "oversample": 1.5},
}
COMMON = {
    "per_device_train_batch_size": 128,  # 16 groups
    "num_generations": 8,
    "max_completion_length": task.MAX_NEW_TOKENS,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "beta": 0.0,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def make_scorer(latency_s: float) -> Any:
    async def sorted_letters(completions: list[str], answer: list[str], solved: list[bool], **_: Any) -> list[float]:
        await asyncio.sleep(latency_s)
        return [float(done or text == right) for text, right, done in zip(completions, answer, solved, strict=True)]

    return sorted_letters


@dataclass
class Learning(TrainerCallback):
    """Ends a run when it has reached the target; notes what it took."""

    words: Any
    tokenizer: Any
    target: float
    began_s: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    reached: bool = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 5:
            return
        self.seconds += time.perf_counter() - self.began_s
        model = kwargs["model"]
        found = task.accuracy(self.words, task.answer_greedily(model, self.tokenizer, self.words))
        model.train()
        print(f"step {state.global_step}: {found:.1%} after {self.seconds:.0f} s", file=sys.stderr)
        self.reached = control.should_training_stop = found >= self.target
        self.began_s = time.perf_counter()


@dataclass(frozen=True)
class Found:
    """What a run took to reach the target; not `reached` if it ended before."""

    reached: bool
    steps: int
    tokens: int
    seconds: float
    wait_share: float
    live_share: float


def prepare(folder: Path) -> tuple[str, Any]:
    """The weak policy of the quickstart, and its words."""
    transformers.set_seed(0)
    rng = random.Random(0)
    words = task.make_task(rng, train_words=20_000, held_out_words=300)
    tokenizer = task.make_tokenizer()
    model = task.make_model(tokenizer)
    task.warm_up(model, tokenizer, words.train, rng, steps=400)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), words


def run(folder: str, model: str, words: Any, server: Any, options: Any, solved: float, settings: Any) -> Found:
    rng = random.Random(1)
    rows = [
        {"prompt": task.prompt_of(word), "answer": task.answer_of(word), "solved": rng.random() < solved}
        for word in words.train
    ]
    tokenizer = AutoTokenizer.from_pretrained(model)
    args = RemoteGRPOConfig(
        f"{folder}/run",
        reward_endpoint=[server.endpoint],
        score_ahead=int(options.score_ahead),
        max_steps=options.most_steps,
        **{**COMMON, **settings},
    )
    learning = Learning(words.held_out, tokenizer, options.target)
    policy = AutoModelForCausalLM.from_pretrained(model)
    trainer = RemoteGRPOTrainer(policy, args=args, train_dataset=Dataset.from_list(rows), callbacks=[learning])
    learning.began_s = time.perf_counter()
    trainer.train()
    trainer.close()
    return found_in(trainer, learning)


def found_in(trainer: Any, learning: Learning) -> Found:
    logs = [line for line in trainer.state.log_history if "reward/exposed_wait_s" in line]
    waits = sum(line["reward/exposed_wait_s"] for line in logs)
    dead = [line["frac_reward_zero_std"] for line in logs]
    return Found(
        learning.reached,
        trainer.state.global_step,
        trainer.state.num_input_tokens_seen,
        learning.seconds,
        waits / learning.seconds,
        1 - sum(dead) / len(dead),
    )


def scorer(latency_s: float) -> dict[str, Any]:
    options = {"factory": True, "kwargs": {"latency_s": latency_s}, "place": "loop"}
    return {"scorers": [{"type": "function", "name": "right", "function": f"{__file__}:make_scorer", **options}]}


def report(solved: float, results: dict[str, Found]) -> None:
    off = results["off"]
    print(f"\n{solved:.0%} of the prompts solved")
    print(f"{'':22}{'steps':>8}{'tokens':>10}{'seconds':>9}{'live':>7}{'wait':>7}   steps, tokens, seconds of off")
    for name, found in results.items():
        ratios = [off.steps / found.steps, off.tokens / found.tokens, off.seconds / found.seconds]
        told = "  ".join(f"{ratio:5.2f} x" for ratio in ratios)
        print(
            f"{name:22}{'' if found.reached else '>':>1}{found.steps:7}{found.tokens:10}{found.seconds:9.1f}"
            f"{found.live_share:7.0%}{found.wait_share:7.1%}   {told}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solved", default="0.5,0.9")
    parser.add_argument("--target", type=float, default=0.7, help="held-out accuracy that ends a run")
    parser.add_argument("--latency-s", type=float, default=0.3)
    parser.add_argument("--most-steps", type=int, default=300)
    parser.add_argument("--score-ahead", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the service has the other core
    with tempfile.TemporaryDirectory() as folder:
        model, words = prepare(Path(folder) / "weak")
        with launch_server(scorer(options.latency_s)) as server:
            for solved in map(float, options.solved.split(",")):
                results = {
                    name: run(folder, model, words, server, options, solved, settings)
                    for name, settings in RUNS.items()
                }
                report(solved, results)


if __name__ == "__main__":
    main()
