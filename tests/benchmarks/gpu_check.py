"""What this project does on your GPU, in one command of at most four minutes: no network, no model of yours.

    make gpu-check
    python tests/benchmarks/gpu_check.py [--out gpu-check.json] [--parts training,classifier,zero]
    python tests/benchmarks/gpu_check.py --device cpu --tiny        the same on a CPU, small

Prints a table and what must hold, and writes both to a JSON file: versions and the card; the form in which rows go
through the model and why; gradients' distances from float32's; times, tokens, memory and utilisation of updates for
half, full, equal and prefix (the cases of step_efficiency.py), with and without Liger kernels where those are
installed; a reward model's rates; ZeRO-2 and ZeRO-3 on one rank with a served reward. The exit code is 1 where
something that must hold does not. An aim that is missed is said, and is no failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import transformers

from grpo_plugin.cli.quiet import hush_libraries, hush_progress_bars
from tests.benchmarks.gpu import card, classifier, training, verdict, zero
from tests.benchmarks.load.settings import Settings, table
from tests.benchmarks.updates.cases import CASES, QWEN_HALF_B, Shape

PARTS = ("training", "classifier", "zero")
_TINY = Shape(hidden=128, inner=128, layers=2)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    began = time.perf_counter()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    hush_libraries()
    hush_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    reasons = Reasons()
    report: dict[str, Any] = {"machine": card.describe(options.device), "reasons": reasons.said}
    print("  ".join(f"{name} {value}" for name, value in report["machine"].items() if value))
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        claims = [claim for part in options.parts for claim in _PARTS[part](options, Path(folder), report)]
    claims += verdict.of_time(time.perf_counter() - began) if options.device == "cuda" else []
    report["claims"] = [asdict(claim) for claim in claims]
    options.out.write_text(json.dumps(report, indent=1))
    say(claims, reasons.said)
    print(f"written to {options.out}")
    return 0 if all(claim.held for claim in claims if claim.must) else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest models and few rows: to try the check itself")
    parser.add_argument("--parts", type=_parts, default=PARTS, help="some of " + ",".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"))
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; to try the check on a CPU: --device cpu --tiny")
    if not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")
    return options


def _parts(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(PARTS)}")
    return chosen


class Reasons(logging.Handler):
    """Keeps what the trainer says about the form that it chose."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        logging.getLogger("grpo_plugin").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.said:
            self.said.append(text)


# --------------------------------------------------------------------------------------------------------------- parts


def train(options: argparse.Namespace, folder: Path, report: dict[str, Any]) -> list[verdict.Claim]:
    device = options.device
    rate = matrix_rate(device, report)
    print(_HEADER)
    measured = []
    for each in training.measure(_work(options, rate), training.variants(device, card.has_liger()), folder):
        measured.append(each)
        print(_line(each), flush=True)
    report["training"] = [each.as_dict() for each in measured]
    return verdict.of_training(measured, device)


def matrix_rate(device: str, report: dict[str, Any]) -> float:
    """Operations a second of matrix products in the precision that is trained in, measured once."""
    if "matrix_tflops" not in report:
        size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
        report["matrix_tflops"] = card.matrix_rate(device, size, dtype) / 1e12
        print(f"matrix products of {size} × {size}: {report['matrix_tflops']:.3g} TFLOP/s")
    rate: float = report["matrix_tflops"]
    return rate * 1e12


def _work(options: argparse.Namespace, rate: float) -> training.Work:
    """128 rows an optimizer step, as the numbers of docs/performance.md have; 16 short ones where it is to be tiny."""
    if not options.tiny:
        return training.Work(options.device, QWEN_HALF_B, 16, 8, 2, CASES, rate)
    short = {
        name: replace(case, prompt=case.prompt // 8, median=case.median // 8, longest=64)
        for name, case in CASES.items()
    }
    return training.Work(options.device, _TINY, 8, 2, 1, short, rate)


def reward_model(options: argparse.Namespace, folder: Path, report: dict[str, Any]) -> list[verdict.Claim]:
    device = options.device
    settings = Settings(rounds=1, seconds=0.5, callers=4) if options.tiny else Settings(2, 5.0, device=device)
    served = asyncio.run(classifier.measure(settings, folder / "classifier", matrix_rate(device, report)))
    report["classifier"] = asdict(served)
    print(f"\na reward model before {settings.callers} callers, {served.form}")
    rows = [
        [r.target, f"{r.completions_s:.0f}", f"{r.rows_a_call:.1f}", f"{r.idle:.1%}", f"{r.utilisation:.1%}"]
        for r in served.rates
    ]
    table(["", "completions/s", "rows a call", "idle", "of rate"], rows)
    return verdict.of_classifier(served, device)


def deepspeed(options: argparse.Namespace, folder: Path, report: dict[str, Any]) -> list[verdict.Claim]:
    runs = zero.run(options.device, folder)
    report["zero"] = [asdict(run) for run in runs]
    for run in runs:
        if not run.held:
            print(f"\nZeRO-{run.stage} printed last:\n{run.output}")
    return verdict.of_zero(runs)


_PARTS = {"training": train, "classifier": reward_model, "zero": deepspeed}


# ------------------------------------------------------------------------------------------------------------- printing

_HEADER = (
    f"\n{'':20}{'case':>8}{'form':>24}{'update s':>10}{'best':>8}{'log-probs s':>13}{'tokens':>10}{'useful':>9}"
    f"{'GiB':>7}{'of rate':>9}{'gradient':>10}"
)


def _line(each: training.Measured) -> str:
    peak = "" if each.peak_gib is None else f"{each.peak_gib:.1f}"
    distance = "" if each.gradient_distance is None else f"{each.gradient_distance:.1e}"
    return (
        f"{each.variant:20}{each.case:>8}{each.form:>24}{each.update_s:10.3f}{each.best_update_s:8.3f}"
        f"{each.log_probs_s:13.3f}{each.update_tokens:10,}{each.useful_tokens:9,}{peak:>7}{each.utilisation:9.1%}"
        f"{distance:>10}"
    )


def say(claims: Sequence[verdict.Claim], reasons: Sequence[str]) -> None:
    print("\nwhat the trainer said of its choices:" if reasons else "")
    for reason in reasons:
        print(f"  {reason}")
    for must, title in ((True, "must hold"), (False, "aims")):
        of_kind = [claim for claim in claims if claim.must is must]
        if of_kind:
            print(f"\n{title}:")
        for claim in of_kind:
            print(f"  {('yes' if claim.held else 'NO') if must else ('met' if claim.held else 'missed'):7}{claim.text}")


if __name__ == "__main__":
    sys.exit(main())
