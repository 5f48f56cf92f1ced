"""What an optimizer step computes and how long that takes: stock TRL and this trainer in turn, a process each.

Cases, each of groups of 8 (see CASES): completion lengths drawn log-normally (median 200, σ 0.6, at most 1,024) with
half the groups without signal, and with signal everywhere; equal lengths, where there is nothing to gain; and prompts
of 512 tokens before completions of 128, with shared prefixes on and off. Completions and rewards are given, so that
all compute the same; a generation is trained on twice, so that TRL needs old log-probabilities.

    python tests/benchmarks/step_efficiency.py [--cases half,full,equal,prefix] [--rounds 3] [--device cpu]

Tokens are counted where they enter the model. Seconds are of log-probabilities a generation, and of an optimizer step's
forwards and backwards (planning included); the median over steps and rounds. Memory is the process's largest resident
set above what it held before training, or the device's peak. The gradients are those of the first optimizer step.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).parents[2]))

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from tests.support.builders import make_tokenizer

GROUP = 8
GENERATIONS = 1  # of two optimizer steps


@dataclass(frozen=True)
class Case:
    """Groups of GROUP rows, `prompt` tokens before completions of `median` tokens, σ `sigma`."""

    prompt: int
    median: int
    sigma: float
    silent: float  # share of groups without signal
    who: tuple[str, ...] = ("stock", "ours")


CASES = {
    "half": Case(prompt=40, median=200, sigma=0.6, silent=0.5, who=("stock", "padded", "ours")),
    "full": Case(prompt=40, median=200, sigma=0.6, silent=0.0, who=("stock", "padded", "ours")),
    "equal": Case(prompt=40, median=256, sigma=0.0, silent=0.0),
    "prefix": Case(prompt=512, median=128, sigma=0.0, silent=0.0, who=("stock", "unshared", "ours")),
}
OURS: dict[str, dict[str, Any]] = {"ours": {}, "padded": {"padding_free": False}, "unshared": {"shared_prefix": False}}
NAMES = {
    "stock": "stock TRL",
    "ours": "ours",
    "padded": "ours, sorted and trimmed",
    "unshared": "ours, prompts not shared",
}

COMMON = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 8,
    "num_generations": GROUP,
    "num_iterations": 2,
    "max_completion_length": 1024,
    "learning_rate": 1e-4,
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "max_steps": 2 * GENERATIONS,
    "logging_strategy": "no",
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}


# ---------------------------------------------------------------------------------------- one trainer, one process


def rollout_of(case: Case) -> Any:
    """Completions of the case's lengths, the same for every trainer."""
    drawn = random.Random(0)

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        lengths = [min(1024, max(1, round(case.median * math.exp(case.sigma * drawn.gauss(0, 1))))) for _ in prompts]
        completions = [[drawn.randrange(3, 259) for _ in range(length)] for length in lengths]
        ids = trainer.processing_class(text=prompts)["input_ids"]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": [[0.0] * n for n in lengths]}

    return rollout


def reward_of(case: Case) -> Any:
    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        groups = len(completion_ids) // GROUP
        return [
            float(row % 2) if row // GROUP >= round(case.silent * groups) else 1.0 for row in range(len(completion_ids))
        ]

    return reward


class Meter(TrainerCallback):
    """Counts a trainer's tokens and times its parts."""

    def __init__(self, trainer: Any):
        self.tokens = {"log_probs": 0, "update": 0}
        self.seconds: dict[str, list[float]] = {"log_probs": [], "update": []}
        self.gradients: list[torch.Tensor] = []
        self._trainer = trainer
        self._generating = self._update = 0.0
        trainer.model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._wrap("_get_per_token_logps_and_entropies", self._log_probs)
        self._wrap("_generate_and_score_completions", self._generation)
        self._wrap("training_step", self._training_step)
        trainer.add_callback(self)

    def _wrap(self, name: str, timed: Any) -> None:
        inner = getattr(self._trainer, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            began = time.perf_counter()
            result = inner(*args, **kwargs)
            synchronize()
            timed(time.perf_counter() - began)
            return result

        setattr(self._trainer, name, outer)

    def _count(self, model: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if kwargs.get("fused_lm_head") and model.training:  # which it is not in the trial at start-up
            self.tokens["update" if torch.is_grad_enabled() else "log_probs"] += kwargs["input_ids"].numel()

    def _log_probs(self, seconds: float) -> None:
        if not torch.is_grad_enabled():
            self.seconds["log_probs"].append(seconds)

    def _generation(self, seconds: float) -> None:
        self._generating += seconds

    def _training_step(self, seconds: float) -> None:
        self._update += seconds
        if self._trainer.accelerator.sync_gradients:
            self.seconds["update"].append(self._update - self._generating)
            self._update = self._generating = 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.gradients:
            self.gradients = [p.grad.float().cpu().clone() for p in kwargs["model"].parameters() if p.grad is not None]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def save_model(folder: Path, device: str) -> str:
    tokenizer = make_tokenizer()
    size = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
    if device == "cuda":
        size = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}  # as Qwen2.5-0.5B
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        **size,
        num_attention_heads=size["hidden_size"] // 64,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.05,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def measure(name: str, who: str, model: str, device: str, gradients: str) -> dict[str, Any]:
    """Trains GENERATIONS generations, and says what that took."""
    case = CASES[name]
    torch.set_num_threads(1)
    place = {"use_cpu": True, "bf16": False} if device == "cpu" else {"bf16": True}
    folder = str(Path(gradients).parent / "run")
    if who == "stock":
        cls, args = GRPOTrainer, GRPOConfig(folder, **COMMON, **place)
    else:
        cls, args = RemoteGRPOTrainer, RemoteGRPOConfig(folder, **COMMON, **place, **OURS[who])
    prompts = [chr(97 + index % 26) * case.prompt for index in range(64)]
    trainer = cls(
        model,
        reward_funcs=reward_of(case),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        rollout_func=rollout_of(case),
    )
    if who != "stock":
        _ = trainer._layout  # the trial of layouts, once a run, is not a step's
    meter = Meter(trainer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer.train()
    torch.save(meter.gradients, gradients)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "tokens": meter.tokens,
        "log_probs_s": meter.seconds["log_probs"],
        "update_s": meter.seconds["update"],
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak,
        "useful": useful_tokens(case),
    }


def useful_tokens(case: Case) -> int:
    """Tokens of rows with signal in all optimizer steps, each prompt once."""
    tokenizer = type("Bytes", (), {"processing_class": staticmethod(lambda text: {"input_ids": [[0]] * len(text)})})
    rollout, rows = rollout_of(case), COMMON["per_device_train_batch_size"] * COMMON["gradient_accumulation_steps"]
    total = 0
    for _ in range(GENERATIONS):
        lengths = [len(ids) for ids in rollout([""] * rows, tokenizer)["completion_ids"]]
        silent = round(case.silent * rows / GROUP)
        total += 2 * (sum(lengths[silent * GROUP :]) + (rows // GROUP - silent) * case.prompt)
    return total


# ------------------------------------------------------------------------------------------------------ the report


def run(name: str, who: str, model: str, device: str, gradients: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, who, model, device, str(gradients)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def report(name: str, rounds: int, model: str, device: str, folder: Path) -> None:
    case = CASES[name]
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in case.who}
    for _ in range(rounds):
        for who in case.who:
            found[who].append(run(name, who, model, device, folder / f"{who}.pt"))
    print(f"\n{name}: {case}")
    print(f"{'':27}{'tokens: log-probs':>18}{'update':>10}{'useful':>9}{'log-probs s':>13}{'update s':>10}{'MiB':>7}")
    medians = {}
    for who, runs in found.items():
        tokens, useful = runs[0]["tokens"], runs[0]["useful"]
        seconds = [statistics.median(x for run in runs for x in run[part]) for part in ("log_probs_s", "update_s")]
        peak = statistics.median(run["peak_mib"] for run in runs)
        medians[who] = (tokens["update"], *seconds, peak)
        print(
            f"{NAMES[who]:27}{tokens['log_probs']:18,}{tokens['update']:10,}{useful:9,}"
            f"{seconds[0]:13.3f}{seconds[1]:10.3f}{peak:7.0f}"
        )
    base = case.who[0]
    for who in case.who[1:]:
        ratios = [a / b for a, b in zip(medians[base], medians[who], strict=True)]
        print(
            f"{NAMES[base]} / {NAMES[who]}: update tokens {ratios[0]:.2f}, log-prob time {ratios[1]:.2f}, "
            f"update time {ratios[2]:.2f}, memory {ratios[3]:.2f}; largest difference of gradients "
            f"{difference(folder / f'{base}.pt', folder / f'{who}.pt'):.1e} of the largest gradient"
        )


def difference(a: Path, b: Path) -> float:
    pairs = list(zip(torch.load(a), torch.load(b), strict=True))
    return float(max((x - y).abs().max() for x, y in pairs) / max(x.abs().max() for x, _ in pairs))


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = save_model(Path(name) / "model", options.device)
        for case in options.cases.split(","):
            report(case, options.rounds, model, options.device, Path(name))


if __name__ == "__main__":
    main()
