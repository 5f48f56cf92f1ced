"""A reward model before 64 callers: one request at a time, the service, the offline limit, and the chip's own rate.

The model, the groups and the targets are those of service_load.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from tests.benchmarks.load.reward_model import Alone, Offline, Turn, compare, make_groups, save_model, service
from tests.benchmarks.load.settings import Settings

ALONE, SERVICE, OFFLINE = "each alone", "service", "offline"
_CHECKED = 8  # groups that are scored by all, to compare the scores


@dataclass(frozen=True)
class Rate:
    """What a target reached. `utilisation` counts two operations a weight and token, without padding."""

    target: str
    completions_s: float
    rows_a_call: float
    idle: float  # share of the time with completions waiting in which the model did not compute
    utilisation: float  # of the matrix products' rate


@dataclass(frozen=True)
class Served:
    """The rates, the form in which rows go through the model, and how far the service's scores are from one alone."""

    rates: list[Rate]
    form: str
    largest_difference: float
    spread: float  # standard deviation of the scores, which the difference is to be seen beside


async def measure(settings: Settings, folder: Path, matrix_rate: float) -> Served:
    """All targets in turn."""
    model = save_model(folder, settings.device)
    weights = _weights(Path(model) / "model.safetensors")
    async with service(model, settings) as served:
        alone, offline = Alone(ALONE, model), Offline(OFFLINE, model)
        differences, scores = [], []
        for group in itertools.islice(make_groups(), _CHECKED):
            own = dataclasses.replace(group, group_id=f"checked-{group.group_id}")
            answer = await served.callers[0](own)
            found = [score.value for score in answer.scorers[0].scores]
            expected = [score.value for score in alone.scorer.score(own).scores]
            differences += [abs(a - b) for a, b in zip(found, expected, strict=True)]
            scores += expected
        results = await compare([alone, served, offline], settings)
    rates = [_rate(name, turns, weights, matrix_rate) for name, turns in results.items()]
    return Served(rates, offline.scorer.models.choice.form, max(differences), statistics.stdev(scores))


def shares(results: Sequence[Rate]) -> dict[str, float]:
    """The service's rate over that of each other target."""
    found = {rate.target: rate.completions_s for rate in results}
    return {name: found[SERVICE] / found[name] for name in (ALONE, OFFLINE)}


def _rate(name: str, turns: Sequence[Turn], weights: int, matrix_rate: float) -> Rate:
    total = {field: sum(getattr(turn, field) for turn in turns) for field in ("tokens", "wall_s", "rows", "batches")}
    busy, idle = (sum(getattr(turn, field) for turn in turns) for field in ("busy_s", "idle_s"))
    return Rate(
        name,
        statistics.median(turn.rate for turn in turns),
        total["rows"] / total["batches"],
        idle / (idle + busy),
        2 * weights * total["tokens"] / total["wall_s"] / matrix_rate,
    )


def _weights(file: Path) -> int:
    """How many weights multiply each token: all but the embeddings, which are looked up."""
    with safe_open(file, "pt") as tensors:
        names = [name for name in tensors.keys() if "embed_tokens" not in name]  # noqa: SIM118 - not a mapping
        return sum(tensors.get_tensor(name).numel() for name in names)
