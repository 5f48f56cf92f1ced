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
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.updates.cases import CASES, QWEN_HALF_B, SMALL, useful_tokens
from tests.benchmarks.updates.meter import Meter
from tests.benchmarks.updates.trainers import NAMES, OPTIONS, make_trainer

ROWS, ACCUMULATED = 8, 8  # of a micro-batch of TRL's, and of an optimizer step

# Who trains which case: stock TRL is what the others are compared with.
WHO = {
    "half": ("stock", "padded", "ours"),
    "full": ("stock", "padded", "ours"),
    "equal": ("stock", "ours"),
    "prefix": ("stock", "unshared", "ours"),
}

# ---------------------------------------------------------------------------------------- one trainer, one process


def measure(name: str, who: str, model: str, device: str, gradients: str) -> dict[str, Any]:
    """Trains one generation, two optimizer steps, and says what that took."""
    case, folder = CASES[name], Path(gradients).parent / "run"
    torch.set_num_threads(1)
    place = {"use_cpu": True, "bf16": False} if device == "cpu" else {"bf16": True}
    steps = {"per_device_train_batch_size": ROWS, "gradient_accumulation_steps": ACCUMULATED, "max_steps": 2}
    trainer = make_trainer(case, model, folder, OPTIONS[who], **steps, **place)
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
        "useful": 2 * useful_tokens(case, ROWS * ACCUMULATED),
    }


# ------------------------------------------------------------------------------------------------------ the report


def run(name: str, who: str, model: str, device: str, gradients: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, who, model, device, str(gradients)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def report(name: str, rounds: int, model: str, device: str, folder: Path) -> None:
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in WHO[name]}
    for _ in range(rounds):
        for who in WHO[name]:
            found[who].append(run(name, who, model, device, folder / f"{who}.pt"))
    print(f"\n{name}: {CASES[name]}")
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
    base, *others = WHO[name]
    for who in others:
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
        shape = SMALL if options.device == "cpu" else QWEN_HALF_B
        model = shape.save(Path(name) / "model")
        for case in options.cases.split(","):
            report(case, options.rounds, model, options.device, Path(name))


if __name__ == "__main__":
    main()
