"""`reward-server rescore`: recorded completions scored again with another configuration, and what that changes.

Owns the output file, which makes an interrupted run go on where it was, and the comparison of old and new rewards.

Legend: G completions of a group.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_server.errors import ConfigError
from reward_server.evaluation.recorded import Record, read_records
from reward_server.evaluation.scoring import Scoring
from reward_server.evaluation.statistics import kendall
from reward_server.observability.record_form import record_of

_SHOWN = 10


async def rescore(
    records: Sequence[Record], scoring: Scoring, out: Path, on_group: Callable[[int, int], None] = lambda *_: None
) -> list[Record]:
    """Scores what `out` does not hold yet and appends it, a line a group; returns all of the new records.

    `on_group(done, all)` is called as groups are done. Raises ConfigError if `out` was written with another
    configuration or cannot be written.
    """
    done = _done(out, scoring.info.config_digest)
    todo = [record for record in records if record.key not in done]
    on_group(len(records) - len(todo), len(records))
    try:
        with out.open("a", encoding="utf-8") as file:
            finished = len(records) - len(todo)
            async for index, scores in scoring.run([record.group for record in todo]):
                file.write(json.dumps(record_of(todo[index].group, scores, time.time())) + "\n")
                file.flush()  # what is written survives a kill; the line after it may be torn, and is then left out
                finished += 1
                on_group(finished, len(records))
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from error
    return list(read_records([out]))


def _done(out: Path, digest: str) -> set[str]:
    """The keys of the groups in an output file of an earlier run, whose torn last line is cut off."""
    if not out.exists():
        return set()
    whole = out.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        with out.open("r+b") as file:
            file.truncate(end)
    found = list(read_records([out]))
    for record in found:
        if record.config_digest != digest:
            raise ConfigError(
                f"--out {out} was written with configuration {record.config_digest[:12]}, and this one is "
                f"{digest[:12]}: name another file, or remove it"
            )
    return {record.key for record in found}


# ---------------------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a scorer's scores, and how many there are and failed."""

    mean: float
    std: float
    count: int
    missing: int


@dataclass(frozen=True)
class Difference:
    """One group under both configurations: Kendall's τ of its rewards, and how many advantages change their sign."""

    record: Record
    tau: float | None
    turned: int
    compared: int


@dataclass(frozen=True)
class Comparison:
    """Old and new scores of the same groups."""

    before: dict[str, Spread]
    after: dict[str, Spread]
    differences: tuple[Difference, ...]

    @property
    def tau(self) -> float | None:
        """The mean over groups in which both sides tell completions apart."""
        known = [difference.tau for difference in self.differences if difference.tau is not None]
        return statistics.fmean(known) if known else None

    @property
    def turned(self) -> float | None:
        """The share of completions whose advantage changes its sign."""
        compared = sum(difference.compared for difference in self.differences)
        return sum(difference.turned for difference in self.differences) / compared if compared else None


def compare(old: Sequence[Record], new: Sequence[Record]) -> Comparison:
    """Compares the groups with the same texts in both. Completions with a failed score in either are left out."""
    by_key = {record.key: record for record in new}
    pairs = [(record, by_key[record.key]) for record in old if record.key in by_key]
    return Comparison(
        _spreads([before for before, _ in pairs]),
        _spreads([after for _, after in pairs]),
        tuple(_difference(before, after) for before, after in pairs),
    )


def _spreads(records: Sequence[Record]) -> dict[str, Spread]:
    values: dict[str, list[float | None]] = {}
    for record in records:
        for name, scores_G in [("reward", record.rewards_G), *record.scores.items()]:
            values.setdefault(name, []).extend(scores_G)
    return {name: _spread(told) for name, told in values.items()}


def _spread(values: Sequence[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    mean = statistics.fmean(known) if known else float("nan")
    return Spread(mean, statistics.pstdev(known) if known else float("nan"), len(known), len(values) - len(known))


def _difference(before: Record, after: Record) -> Difference:
    pairs = [
        (old, new)
        for old, new in zip(before.rewards_G, after.rewards_G, strict=True)
        if old is not None and new is not None
    ]
    old, new = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    turned = sum(a * b < 0 for a, b in zip(_advantages(old), _advantages(new), strict=True))
    return Difference(after, kendall(old, new), turned, len(pairs))


def _advantages(rewards: Sequence[float]) -> list[float]:
    """Against the group's mean; rounding is no sign."""
    mean = statistics.fmean(rewards) if rewards else 0.0
    return [reward - mean if abs(reward - mean) > 1e-9 else 0.0 for reward in rewards]


def lines_of(comparison: Comparison) -> Iterator[str]:
    """What is printed: each scorer before and after, the order within groups, the groups that differ most."""
    names = list(dict.fromkeys([*comparison.before, *comparison.after]))
    width = max(len(name) for name in names)
    yield f"{'':{width}}  {'before':>21}  {'after':>21}"
    for name in names:
        cells = [_cell(side.get(name)) for side in (comparison.before, comparison.after)]
        yield f"{name:{width}}  {cells[0]:>21}  {cells[1]:>21}"
    yield ""
    tau, turned = comparison.tau, comparison.turned
    yield f"groups: {len(comparison.differences)}"
    yield f"Kendall's τ of the rewards within groups: {'-' if tau is None else f'{tau:.3f}'}"
    yield f"completions whose advantage changes its sign: {'-' if turned is None else f'{turned:.1%}'}"
    order = sorted(comparison.differences, key=lambda one: (one.tau if one.tau is not None else 2.0, -one.turned))
    differing = [one for one in order if one.turned or (one.tau is not None and one.tau < 1)][:_SHOWN]
    if differing:
        yield "groups that differ most:"
    for one in differing:
        tau_text = "-" if one.tau is None else f"{one.tau:+.2f}"
        yield f"  τ {tau_text}, {one.turned} of {one.compared} advantages turned: {one.record.group.group_id}"


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    failed = f" ({spread.missing} none)" if spread.missing else ""
    return f"{spread.mean:.3f} ± {spread.std:.3f}{failed}"
