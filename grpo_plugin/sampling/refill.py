"""How a batch is filled with groups that are worth training on: what is missing, how much to ask for, what goes where.

Owns the state of one batch while it is filled (`Filling`) and the arithmetic. Pure: nothing here generates, scores or
talks to other ranks, and all of it is the same on every rank.

The groups that TRL's batch keeps stay where they are. The places of the others, the holes, are filled in order, with
what an earlier batch left over and then with the groups of the refill rounds; what is left after that is the surplus of
this batch, for the next one.

Legend: N rows on this rank, R rows of the global batch, B groups of it, G completions of a group, S scorers.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from grpo_plugin.sampling.sampled import Sampled
from reward_server.types import Score

# A round asks for at most this many groups for each that is missing, however few were kept lately.
_MOST_FOR_ONE = 12
# How much a round counts in the running share, compared with the one after it.
_DECAY = 0.9


class PassShare:
    """The share of groups that was kept lately; None before anything was scored."""

    def __init__(self) -> None:
        self._kept = self._seen = 0.0

    def add(self, kept: int, groups: int) -> None:
        """Notes a round."""
        self._kept, self._seen = _DECAY * self._kept + kept, _DECAY * self._seen + groups

    @property
    def value(self) -> float | None:
        return self._kept / self._seen if self._seen else None

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self._kept, self._seen]

    def load(self, state: Sequence[float]) -> None:
        """Goes on from a checkpoint's state."""
        self._kept, self._seen = state


@dataclass(slots=True)
class Round:
    """Groups that were generated together: this rank's rows; and when they are scored, the scores of all ranks."""

    rows_N: list[Sampled]
    indices_B: Sequence[int]  # in the data set; none for TRL's own batch
    step: int  # the optimizer steps before it was sampled
    groups: int
    pending: Any = None
    noted: dict[str, list[float]] = field(default_factory=dict)  # TRL's metrics of it
    scores_RS: torch.Tensor | None = None
    kept_B: torch.Tensor | None = None
    dropped_R: torch.Tensor | None = None
    rewards_BG: torch.Tensor | None = None
    failures_R: Sequence[Mapping[str, Score]] = ()

    def cancel(self) -> None:
        """Ends its calls, if they are in flight."""
        if self.pending is not None:
            self.pending[0].cancel()
            self.pending = None


@dataclass(slots=True)
class Spare:
    """A whole group that is worth training on and may take any place; every rank holds all of its rows."""

    index: int
    step: int
    rows_G: list[Sampled]
    scores_GS: torch.Tensor
    dropped_G: torch.Tensor | None = None
    failures_G: Sequence[Mapping[str, Score]] = ()


@dataclass(slots=True)
class Filling:
    """A batch of `groups` groups that is being filled."""

    groups: int
    columns: Sequence[str]  # of TRL's rows
    main: Round
    spares: list[Spare] = field(default_factory=list)  # oldest first
    in_flight: deque[Round] = field(default_factory=deque)
    done: list[Round] = field(default_factory=list)
    rounds: int = 0
    asked: int = 0

    def __post_init__(self) -> None:
        self.in_flight.append(self.main)

    def add(self, round_: Round) -> None:
        """Notes groups that were generated beside TRL's batch."""
        self.in_flight.append(round_)
        self.asked += round_.groups

    @property
    def holes(self) -> list[int]:
        """The places whose groups are not kept."""
        assert self.main.kept_B is not None
        return [place for place, kept in enumerate(self.main.kept_B.tolist()) if not kept]

    @property
    def have(self) -> int:
        """How many groups worth training on are known, surplus included."""
        kept = 0 if self.main.kept_B is None else int(self.main.kept_B.sum())
        return kept + len(self.spares)

    @property
    def is_full(self) -> bool:
        """Whether every place has a group worth training on, so that nothing in flight need be waited for."""
        return self.main.kept_B is not None and self.have >= self.groups

    def wanted(self, share: float | None, oversample: float = 1.0) -> int:
        """How many more groups to generate, if `share` of those in flight will be kept; 0 if that will do.

        `oversample` is how many kept groups to aim at for each place.
        """
        if share is None:
            return 0
        missing = oversample * self.groups - self.have - share * sum(round_.groups for round_ in self.in_flight)
        return math.ceil(missing / max(share, 1 / _MOST_FOR_ONE)) if missing >= 0.5 else 0

    def placed(self) -> dict[int, Spare]:
        """What goes into the holes, in order."""
        return dict(zip(self.holes, self.spares, strict=False))

    def surplus(self) -> list[Spare]:
        """What is left when the holes are filled."""
        return self.spares[len(self.holes) :]

    def take_unneeded(self) -> list[Round]:
        """The rounds that are in flight and need not be waited for; they are not this batch's any more."""
        unneeded = list(self.in_flight)
        self.in_flight.clear()
        return unneeded

    @contextlib.contextmanager
    def cancelled_on_error(self) -> Iterator[None]:
        """Inside, an error ends the calls that are in flight."""
        try:
            yield
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Ends the calls that are in flight."""
        for round_ in self.in_flight:
            round_.cancel()


@dataclass(frozen=True, slots=True)
class Batch:
    """What is trained on: this rank's rows, and the scores of all ranks.

    `has_old`: some rows, on whichever rank, bring the log-probabilities of the policy that sampled them.
    """

    rows_N: list[Sampled]
    scores_RS: torch.Tensor
    dropped_R: torch.Tensor | None
    failures_R: Sequence[Mapping[str, Score]]
    has_old: bool


def spares_of(round_: Round, rank: int, size: int, gather: Callable[[list[Any]], list[Any]]) -> list[Spare]:
    """The kept groups of a round, whole on every rank. `gather` joins lists of all ranks; each calls it once."""
    assert round_.kept_B is not None
    assert round_.scores_RS is not None
    first, kept = rank * len(round_.rows_N), round_.kept_B.tolist()
    own = [(first + row, sampled) for row, sampled in enumerate(round_.rows_N) if kept[(first + row) // size]]
    rows: dict[int, Sampled] = dict(gather(own))
    parts = [(group, slice(group * size, (group + 1) * size)) for group in range(round_.groups) if kept[group]]
    return [
        Spare(
            round_.indices_B[group],
            round_.step,
            [rows[row] for row in range(part.start, part.stop)],
            round_.scores_RS[part],
            None if round_.dropped_R is None else round_.dropped_R[part],
            round_.failures_R[part],
        )
        for group, part in parts
    ]


def filled(filling: Filling, rank: int, size: int) -> Batch:
    """The batch with its holes filled, as far as there is something to fill them with."""
    main, placed = filling.main, filling.placed()
    assert main.scores_RS is not None
    rows_N, scores_RS, first = list(main.rows_N), main.scores_RS.clone(), rank * len(main.rows_N)
    none_R = torch.zeros(len(scores_RS), dtype=torch.bool, device=scores_RS.device)
    dropped_R = none_R.clone() if main.dropped_R is None else main.dropped_R.clone()
    failures_R = list(main.failures_R) or [{}] * len(scores_RS)
    for group, spare in placed.items():
        part = slice(group * size, (group + 1) * size)
        scores_RS[part] = spare.scores_GS
        dropped_R[part] = none_R[part] if spare.dropped_G is None else spare.dropped_G
        failures_R[part] = spare.failures_G or [{}] * size
        for row in range(max(part.start, first), min(part.stop, first + len(rows_N))):
            rows_N[row - first] = spare.rows_G[row - part.start]
    drops = any(part.dropped_G is not None for part in placed.values()) or main.dropped_R is not None
    samples = [main.rows_N[0], *(spare.rows_G[0] for spare in placed.values())]
    has_old = any(row.old_log_probs is not None for row in samples)
    return Batch(rows_N, scores_RS, dropped_R if drops and dropped_R.any() else None, failures_R, has_old)


def sizes(count: int, most: int, unit: int) -> Iterator[int]:
    """`count` groups, rounded up to whole units, in parts of at most `most` groups: what is generated at once."""
    left = -(-count // unit) * unit
    while left > 0:
        yield min(left, most)
        left -= most


def unit_of(group_size: int, ranks: int) -> int:
    """The fewest groups whose rows can be dealt to the ranks evenly."""
    return ranks // math.gcd(group_size, ranks)
