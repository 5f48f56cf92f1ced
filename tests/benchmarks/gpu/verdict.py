"""What must hold, and what is aimed at: sentences about measured values, and whether they are true.

Owns the bounds. What must hold decides the exit code; an aim that is missed is only said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.gpu.classifier import ALONE, OFFLINE, Served, shares
from tests.benchmarks.gpu.training import OURS, STOCK, Measured
from tests.benchmarks.gpu.zero import Trained

_AS_EXACT = 1.1  # our gradient may be this many times as far from float32's as stock TRL's
_FLOAT32 = 1e-4  # or this far, where stock TRL computes in float32 itself
AIMS = {"half": 10.0, "full": 5.0}  # × stock TRL's update time
_UTILISATION, _UTILISATION_BF16 = 0.40, 0.50
_OF_OFFLINE, _OF_ALONE, _OF_CHIP = 0.85, 3.0, 0.40  # the service's rate; and the offline limit's, of the chip's
_SAME_SCORES = {"cpu": 0.01, "cuda": 0.5}  # of the scores' spread: float32, and bfloat16 on random weights
LIMIT_S = 240.0


@dataclass(frozen=True)
class Claim:
    """A sentence, whether it is true, and whether it must be."""

    text: str
    held: bool
    must: bool = True


def of_training(measured: Sequence[Measured], device: str) -> list[Claim]:
    """Gradients are as exact as stock TRL's and rows are packed; on a GPU also times, memory and utilisation."""
    found = {(each.variant, each.case): each for each in measured}
    stock = found[STOCK, "half"].gradient_distance
    assert stock is not None
    bound = max(_AS_EXACT * stock, _FLOAT32)
    claims = [
        Claim(f"{each.variant}: gradient {each.gradient_distance:.2e} from float32's, at most {bound:.2e}", held)
        for each in measured
        if each.variant != STOCK and each.gradient_distance is not None
        for held in [each.gradient_distance <= bound]
    ]
    ours = [each for each in measured if each.variant == OURS]
    claims.append(Claim(f"rows are packed, prompts shared: {ours[0].form}", ours[0].form == "packed, prompts shared"))
    claims += [
        Claim(
            f"{each.case}: an update takes {each.update_tokens:,} tokens, no more than stock TRL's {theirs:,}",
            each.update_tokens <= theirs,
        )
        for each in ours
        for theirs in [found[STOCK, each.case].update_tokens]
    ]
    return claims + (_on_a_gpu(measured, found) if device == "cuda" else [])


def _on_a_gpu(measured: Sequence[Measured], found: dict[tuple[str, str], Measured]) -> list[Claim]:
    claims = []
    for each in measured:
        stock = found.get((STOCK, each.case))
        if stock is None or not each.variant.startswith(OURS):
            continue
        ratio, name = stock.update_s / each.update_s, f"{each.variant}, {each.case}"
        claims.append(Claim(f"{name}: an update is not slower than stock TRL's: {ratio:.2f} ×", ratio >= 1.0))
        if each.case in AIMS:
            aim = AIMS[each.case]
            claims.append(Claim(f"{name}: {ratio:.2f} × stock TRL's update, aim {aim:.0f} ×", ratio >= aim, must=False))
        if each.peak_gib is not None and stock.peak_gib is not None:
            text = f"{name}: {each.peak_gib:.1f} GiB, below stock TRL's {stock.peak_gib:.1f}"
            claims.append(Claim(text, each.peak_gib < stock.peak_gib, must=False))
        if each.case == "full":
            aim = _UTILISATION_BF16 if "bf16" in each.variant else _UTILISATION
            text = f"{name}: {each.utilisation:.0%} of the matrix products' rate, aim {aim:.0%}"
            claims.append(Claim(text, each.utilisation >= aim, must=False))
    return claims


def of_classifier(served: Served, device: str) -> list[Claim]:
    """The service's scores are those of one request alone; on a GPU also how near its rate is to the limits."""
    difference, bound = served.largest_difference, _SAME_SCORES[device] * served.spread
    text = f"classifier, {served.form}: scores differ from those of one request alone by at most {difference:.1e}"
    claims = [Claim(f"{text}, {bound:.1e} is taken", difference <= bound)]
    if device == "cpu":  # whose rates are the machine's load as much as ours
        return claims
    found = shares(served.rates)
    (offline,) = [rate for rate in served.rates if rate.target == OFFLINE]
    return claims + [
        Claim(f"classifier: {what} {value:.2f}, aim {aim:g}", value >= aim, must=False)
        for what, value, aim in (
            ("completions of the service over those of the offline limit", found[OFFLINE], _OF_OFFLINE),
            ("completions of the service over those of one request at a time", found[ALONE], _OF_ALONE),
            ("the offline limit's share of the matrix products' rate", offline.utilisation, _OF_CHIP),
        )
    ]


def of_zero(runs: Sequence[Trained]) -> list[Claim]:
    """Three steps with served rewards came to their end under each ZeRO stage, and no score failed."""
    return [
        Claim(
            f"ZeRO-{run.stage}: {run.steps} steps of {run.groups:g} served groups, without failed scores: "
            f"{run.statuses or 'none'}, exit code {run.exit_code}",
            run.held,
        )
        for run in runs
    ]


def of_time(seconds: float) -> list[Claim]:
    return [Claim(f"the whole check took {seconds:.0f} s, aim {LIMIT_S:.0f} s", seconds <= LIMIT_S, must=False)]
