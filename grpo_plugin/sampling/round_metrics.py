"""TRL's metrics of several generations as those of one, since TRL logs lengths once for each call of `_generate`.

Owns the rules how values of parts become the value of the whole, and what is logged of filling a batch. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from grpo_plugin.sampling.refill import Filling

_CLIPPED = "completions/clipped_ratio"
_CALLS = "tools/call_frequency"


@dataclass(frozen=True, slots=True)
class Noted:
    """What was logged of a part, by name, and how many rows it has."""

    values: Mapping[str, Sequence[float]]
    rows: int

    def one(self, name: str) -> float:
        """NaN where the part did not log it."""
        return self.values[name][-1] if self.values.get(name) else math.nan


def merged(parts: Sequence[Noted]) -> dict[str, float]:
    """The metrics of all parts together; NaN values count nowhere."""
    names = dict.fromkeys(name for part in parts for name, values in part.values.items() if values)
    return {name: _merged(name, parts) for name in names}


def _merged(name: str, parts: Sequence[Noted]) -> float:
    kind = name.rpartition("/")[2]
    having = [(part.one(name), _weight(name, part)) for part in parts]
    having = [(value, weight) for value, weight in having if not math.isnan(value) and weight > 0]
    values = [value for value, _ in having]
    if not having:
        return 0.0 if name.startswith(("completions/", "tools/")) else math.nan
    if name in ("reward/latency_s",) or kind.startswith("max"):
        return max(values)
    if kind.startswith("min"):
        return min(values)
    if name.startswith("reward/"):  # groups, statuses, drops, waits
        return sum(values)
    return _mean(having)


def _weight(name: str, part: Noted) -> float:
    """What a part counts in a mean: its rows, or those of them that the metric is about."""
    if "terminated" in name:
        return part.rows * (1 - part.one(_CLIPPED))
    if name == "tools/failure_frequency":
        return part.rows * part.one(_CALLS)
    return part.rows


def _mean(having: Sequence[tuple[float, float]]) -> float:
    return sum(value * weight for value, weight in having) / sum(weight for _, weight in having)


def grown(before: Mapping[str, int], metrics: dict[str, list[float]]) -> Iterator[tuple[str, list[float]]]:
    """Takes what was appended since `before` (the lengths then) out of TRL's metrics, in place; `num_tokens` stays."""
    for name in [name for name in metrics if name != "num_tokens"]:
        start = before.get(name, 0)
        added, metrics[name][start:] = metrics[name][start:], []
        if not metrics[name]:
            del metrics[name]  # TRL takes the mean of each
        if added:
            yield name, added


def sampling_metrics(filling: Filling, group_size: int, now: int) -> dict[str, float]:
    """What is logged of a batch that was filled at the optimizer step `now`."""
    done, placed = filling.done, filling.placed().values()
    prompts = sum(round_.groups for round_ in done)
    kept = sum(int(round_.kept_B.sum()) for round_ in done if round_.kept_B is not None)
    rewards = torch.cat([round_.rewards_BG.flatten() for round_ in done if round_.rewards_BG is not None])
    ages = [now - filling.main.step] * (filling.groups - len(placed)) + [now - spare.step for spare in placed]
    return merged([Noted(round_.noted, round_.groups * group_size) for round_ in done]) | {
        "sampling/prompts": prompts,
        "sampling/kept_share": kept / prompts,
        "sampling/rounds": filling.rounds,
        "sampling/surplus": len(filling.surplus()),
        "sampling/age": sum(ages) / len(ages),
        "sampling/unfilled": max(0, filling.groups - filling.have),
        "sampling/reward": rewards.nanmean().item(),
    }
