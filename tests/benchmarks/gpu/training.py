"""Updates and log-probabilities: stock TRL and ours on the same rows, and their gradients' distances from float32's.

All trainers run in this process, one after the other. The first generation of each warms up and is not timed.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from grpo_plugin.batching.plan import PackedLayout, PaddedLayout
from tests.benchmarks.updates.cases import CASES, Case, Shape, useful_tokens
from tests.benchmarks.updates.meter import Meter
from tests.benchmarks.updates.trainers import OPTIONS, make_trainer

STOCK, OURS = "stock", "ours"
REFERENCE = "float32"
_STEPS_A_GENERATION = 2


@dataclass(frozen=True)
class Work:
    """What is trained: `rows` rows a micro-batch of TRL's, `accumulated` of them an optimizer step."""

    device: str
    shape: Shape
    rows: int
    accumulated: int
    generations: int  # measured ones
    cases: dict[str, Case]
    matrix_rate: float


@dataclass(frozen=True)
class Variant:
    """A way to train: stock TRL (`ours` is None) or ours with these options; `options` are of both."""

    name: str
    ours: dict[str, Any] | None
    cases: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What one variant did in one case. Times are medians (and the best) of an optimizer step, and of a generation."""

    variant: str
    case: str
    form: str
    update_s: float
    best_update_s: float
    log_probs_s: float
    update_tokens: int  # of an optimizer step
    useful_tokens: int
    peak_gib: float | None  # None on a CPU
    utilisation: float  # of the matrix products' rate, counting 6 operations a weight and token that teaches
    gradient_distance: float | None  # from stock TRL in float32, relative; None where that was not computed

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def variants(device: str, liger: bool) -> list[Variant]:
    """Everything that is compared on this device. The reference comes first: others are measured against it."""
    precision: dict[str, Any] = {"bf16": True} if device == "cuda" else {"bf16": False, "use_cpu": True}
    every = tuple(CASES)
    single = {**precision, "bf16": False, "tf32": False} if device == "cuda" else precision
    found = [
        Variant(REFERENCE, OPTIONS["stock"], ("half",), single),
        Variant(STOCK, OPTIONS["stock"], every, precision),
        Variant("padded", OPTIONS["padded"], ("half",), precision),
        Variant(OURS, OPTIONS["ours"], every, precision),
    ]
    if device == "cuda":
        weights = {"model_init_kwargs": {"dtype": "bfloat16"}}
        found.append(Variant("ours, bf16 weights", {}, ("half", "full"), {**precision, **weights}))
        if liger:
            found.append(Variant("ours, Liger", {"use_liger_kernel": True}, every, precision))
    return found


def measure(work: Work, every: list[Variant], folder: Path) -> Iterator[Measured]:
    """Each variant in each of its cases, as soon as it is known."""
    model = work.shape.save(folder / "model")
    reference: dict[str, list[torch.Tensor]] = {}
    for variant in every:
        for case in variant.cases:
            measured, gradients = _measure(work, variant, case, model, folder / "run", reference.get(case))
            if variant.name == REFERENCE:
                reference[case] = gradients
            yield measured
            _forget(work.device)


def _measure(
    work: Work, variant: Variant, name: str, model: str, folder: Path, reference: list[torch.Tensor] | None
) -> tuple[Measured, list[torch.Tensor]]:
    case = work.cases[name]
    generations = 1 if variant.name == REFERENCE else 1 + work.generations
    trainer = make_trainer(
        case,
        model,
        folder,
        variant.ours,
        per_device_train_batch_size=work.rows,
        gradient_accumulation_steps=work.accumulated,
        max_steps=_STEPS_A_GENERATION * generations,
        **variant.options,
    )
    meter = Meter(trainer)
    if work.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    updates = meter.seconds["update"][_STEPS_A_GENERATION:] or meter.seconds["update"]
    log_probs = meter.seconds["log_probs"][1:] or meter.seconds["log_probs"]
    update_s, useful = statistics.median(updates), useful_tokens(case, work.rows * work.accumulated)
    weights = sum(weight.numel() for weight in trainer.model.parameters())
    measured = Measured(
        variant.name,
        name,
        _form(trainer, variant),
        update_s,
        min(updates),
        statistics.median(log_probs),
        meter.tokens["update"] // (_STEPS_A_GENERATION * generations),
        useful,
        torch.cuda.max_memory_allocated() / 2**30 if work.device == "cuda" else None,
        6 * weights * useful / update_s / work.matrix_rate,
        None if reference is None else _distance(meter.gradients, reference),
    )
    return measured, meter.gradients


def _form(trainer: Any, variant: Variant) -> str:
    """How rows went through the model."""
    if variant.ours is None:
        return "TRL's"
    layout = trainer._layout
    if isinstance(layout, PackedLayout):
        return "packed, prompts shared" if layout.shares else "packed"
    return "padded" if isinstance(layout, PaddedLayout) else "TRL's"


def _distance(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The norm of the difference, relative to the norm of what is expected."""
    pairs = list(zip(found, expected, strict=True))
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return (difference / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5


def _forget(device: str) -> None:
    """Gives the last trainer's memory back; the next one may compute in another precision."""
    gc.collect()
    AcceleratorState._reset_state(reset_partial_state=True)
    if device == "cuda":
        torch.cuda.empty_cache()
