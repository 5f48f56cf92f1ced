"""`reward-server attack`: does a worthless completion earn?

Owns the rows, one group a row (a good completion if there is one, a plain wrong one, the hacks), and what is counted.
The hacks themselves are `hacks`'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_server.errors import InvalidGroupError
from reward_server.evaluation.hacks import WRONG, Hack, Row, attempts_of
from reward_server.evaluation.scoring import Scoring
from reward_server.scorers.base import text_of
from reward_server.types import Completion, Content, Group

_SAME = 1e-9  # rewards that differ by less are equal: sums of weights are rounded


@dataclass(frozen=True)
class Target:
    """One row to attack: the prompt and columns as the trainer has them, a good completion if there is one."""

    where: str
    prompt: Content
    row: Row
    good: str | None = None


@dataclass(frozen=True)
class Bounds:
    """What a hack may earn before it is marked.

    `gain` is what it earns above the plain wrong completion, as a share of what the good one earns above it; without a
    good completion, any gain counts. `rows` is the share of rows in which it may be above that, since a text that holds
    a number is the right answer now and then.
    """

    gain: float = 0.25
    rows: float = 0.05


@dataclass
class Tally:
    """What one hack came to over all rows; its best text in each row counts."""

    hack: Hack
    rows: int = 0
    beats_wrong: int = 0
    reaches_good: int = 0
    above: int = 0
    failed: int = 0
    worst: tuple[float, str, str] | None = None  # gain, where, text
    accepted: bool = False

    def is_marked(self, bounds: Bounds) -> bool:
        return not self.accepted and self.rows > 0 and self.above / self.rows > bounds.rows


@dataclass(frozen=True)
class Attack:
    """The tallies of all hacks, and the rows whose good completion earns no more than the plain wrong one."""

    tallies: tuple[Tally, ...]
    bounds: Bounds
    unfit: tuple[str, ...] = field(default=())

    @property
    def marked(self) -> list[Tally]:
        return [tally for tally in self.tallies if tally.is_marked(self.bounds)]


def targets_of(rows: Sequence[tuple[str, Any]], gold: str | None, good: str, wrong: str) -> list[Target]:
    """The rows of a data file. `gold`, `good` and `wrong` name columns; the last two need not be there.

    The gold answer is the column `gold`, or `answer` if that is there and none is named; of a text with GSM8K's mark
    `####`, what follows it. Raises InvalidGroupError.
    """
    return [_target(where, row, gold, good, wrong) for where, row in rows]


def _target(where: str, row: Any, gold: str | None, good: str, wrong: str) -> Target:
    if not isinstance(row, Mapping) or "prompt" not in row:
        raise InvalidGroupError(f'{where} must be an object with "prompt", not {row!r:.80}')
    columns = {name: value for name, value in row.items() if name not in ("prompt", "completions", good, wrong)}
    if gold is not None and gold not in columns:
        raise InvalidGroupError(f"{where} has no column {gold!r}; it has {', '.join(columns) or 'none'}")
    answer = columns.get(gold or "answer")
    text = str(answer).rsplit("####", 1)[-1].strip() if isinstance(answer, (str, int, float)) else None
    known = Row(text_of(row["prompt"]), columns, text or None, str(row.get(wrong, WRONG)))
    return Target(where, row["prompt"], known, row.get(good, _made_good(known)))


def _made_good(row: Row) -> str | None:
    """Where the data hold no good completion: the gold answer, if there is one, as a model writes it."""
    return None if row.gold is None else f"Let us work it out step by step. The answer is \\boxed{{{row.gold}}}."


async def attack(
    targets: Sequence[Target], hacks: Sequence[Hack], scoring: Scoring, bounds: Bounds, accept: Sequence[str] = ()
) -> Attack:
    """Scores each row's hacks in one group, beside the good and the plain wrong completion."""
    made = [list(attempts_of(hacks, target.row)) for target in targets]
    groups = [
        _group(target, [text for _, texts in attempts for text in texts])
        for target, attempts in zip(targets, made, strict=True)
    ]
    tallies = {hack.name: Tally(hack, accepted=hack.name in accept) for hack in hacks}
    unfit = []
    for target, attempts, scores in zip(targets, made, await scoring.all(groups), strict=True):
        if not _count(target, attempts, scores.rewards(), tallies, bounds):
            unfit.append(target.where)
    return Attack(tuple(tallies.values()), bounds, tuple(unfit))


def _group(target: Target, texts: Sequence[str]) -> Group:
    beside = [target.row.wrong] + ([target.good] if target.good is not None else [])
    as_messages = not isinstance(target.prompt, str)
    contents: list[Content] = [
        [{"role": "assistant", "content": text}] if as_messages else text for text in [*beside, *texts]
    ]
    names: dict[str, Any] = {"run_id": "attack", "group_id": target.where}
    return Group(target.prompt, tuple(map(Completion, contents)), target.row.columns, **names)


def _count(
    target: Target,
    attempts: Sequence[tuple[Hack, tuple[str, ...]]],
    rewards: Sequence[float | None],
    tallies: Mapping[str, Tally],
    bounds: Bounds,
) -> bool:
    """Counts one row, unless its good completion earns no more than the wrong one: then False."""
    earned = iter(rewards)
    wrong = next(earned) or 0.0  # nothing applies to it, or it failed: it earns nothing
    good = next(earned) if target.good is not None else None
    if target.good is not None and (good is None or good <= wrong + _SAME):
        return False
    best: dict[str, tuple[float, str]] = {}
    for hack, texts in attempts:
        own = [next(earned) for _ in texts]
        known = [reward for reward in own if reward is not None]
        if len(known) < len(own):
            tallies[hack.name].failed += 1
        elif hack.name not in best or min(known) > best[hack.name][0]:
            best[hack.name] = min(known), texts[known.index(min(known))]
    for name in {hack.name for hack, _ in attempts}:
        tallies[name].rows += 1
        if name in best:
            _add(tallies[name], *best[name], wrong, good, target.where, bounds)
    return True


def _add(tally: Tally, reward: float, text: str, wrong: float, good: float | None, where: str, bounds: Bounds) -> None:
    gain = (reward - wrong) / (good - wrong) if good is not None else reward - wrong
    tally.beats_wrong += reward > wrong + _SAME
    tally.reaches_good += good is not None and reward >= good - _SAME
    tally.above += gain > (bounds.gain if good is not None else 0.0) + _SAME
    if tally.worst is None or gain > tally.worst[0]:
        tally.worst = (gain, where, text)


def lines_of(found: Attack) -> Iterator[str]:
    """The table: a line for each hack, and the worst example of those above the bound."""
    width = max(len(tally.hack.name) for tally in found.tallies)
    yield f"{'hack':{width}}  rows  beats wrong  reaches good  worst gain"
    for tally in found.tallies:
        if not tally.rows:
            yield f"{tally.hack.name:{width}}     -  does not apply"
            continue
        mark = "  <- above the bound" if tally.is_marked(found.bounds) else "  accepted" * tally.accepted
        gain = "-" if tally.worst is None else f"{tally.worst[0]:.2f}"
        shares = f"{tally.beats_wrong / tally.rows:>11.0%}  {tally.reaches_good / tally.rows:>12.0%}"
        yield f"{tally.hack.name:{width}}  {tally.rows:>4}  {shares}  {gain:>10}{mark}"
    for tally in found.marked:
        assert tally.worst is not None
        worst, where, text = tally.worst
        yield f"\n{tally.hack.name}: {tally.hack.what} It earned {worst:.2f} in {where}:\n  {text[:200]!r}"
    if found.unfit:
        yield (
            f"\nnot counted: {len(found.unfit)} rows whose good completion earns no more than the plain wrong one, "
            f"such as {found.unfit[0]}"
        )
