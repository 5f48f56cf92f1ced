"""Moves rows between ranks: each to the rank that computes it, and what was computed back to the rank that wants it.

Owns which rows leave and arrive, their order, and the one buffer in which they travel. Knows nothing of what the rows'
fields mean, but that a field may have one value a token and then be padded.

Rows travel without padding: every rank knows the lengths of all rows, so no lengths are sent. All fields of all rows
that go to one rank follow one another as bytes, so that an exchange is one collective call, which every rank makes if
any row moves at all.

Legend: R rows over all ranks, N rows here, T tokens (the width of a padded field).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from grpo_plugin.batching.plan import Ints, Plan
from grpo_plugin.batching.ranks import Ranks

Fields = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Padded:
    """How the rows of a field with one value a token lie in it, and as which dtype they travel (None: their own)."""

    tokens_R: Ints
    left: bool = False
    padding: float = 0
    wire: torch.dtype | None = None

    def fit(self, value_NT: torch.Tensor, width: int) -> torch.Tensor:
        """The field at this width: cut or padded, on the side where its padding is."""
        more = width - value_NT.shape[1]
        return functional.pad(value_NT, (more, 0) if self.left else (0, more), value=self.padding)

    def width(self, rows: Sequence[int] | Ints, multiple: int | None = None) -> int:
        """Of the longest of these rows, at least 1, rounded up to a multiple."""
        longest = int(self.tokens_R[np.asarray(rows, dtype=np.int64)].max(initial=1))
        return -(-longest // (multiple or 1)) * (multiple or 1)

    def places(self, rows: Sequence[int] | Ints, width: int) -> Ints:
        """Where the tokens of these rows are in a field of them that is `width` wide, counted along its rows."""
        tokens = self.tokens_R[np.asarray(rows, dtype=np.int64)]
        begin = np.arange(len(tokens)) * width + (width - tokens if self.left else 0)
        before = np.cumsum(tokens) - tokens
        return np.asarray(np.repeat(begin - before, tokens) + np.arange(int(tokens.sum())))


@dataclass(frozen=True, slots=True)
class HeldRows:
    """The rows that a rank has after an exchange, by their numbers in R: first those that stayed, then the arrivals."""

    place: dict[int, int]  # of each row: in `fields`, or behind them in `arrived`
    fields: Fields  # of the rows that were here before, also of those that left
    arrived: Fields  # as wide as the longest of them
    padded: Mapping[str, Padded]

    @property
    def rows(self) -> list[int]:
        return list(self.place)

    def select(self, rows: Sequence[int], multiple: int | None = None) -> Fields:
        """These rows, in this order, as wide as the longest of them, rounded up to a multiple."""
        before = len(next(iter(self.fields.values())))
        place_N = np.asarray([self.place[row] for row in rows], dtype=np.int64)
        here_N = place_N < before
        if here_N.all():
            return self._fitted(select(self.fields, place_N), rows, multiple)
        own = self._fitted(select(self.fields, place_N[here_N]), rows, multiple)
        others = self._fitted(select(self.arrived, place_N[~here_N] - before), rows, multiple)
        order = np.argsort(np.argsort(~here_N, kind="stable"))  # back from own rows first
        return select({name: torch.cat([own[name], others[name]]) for name in own}, order)

    def _fitted(self, fields: Fields, rows: Sequence[int], multiple: int | None) -> Fields:
        return fitted_to(fields, self.padded, rows, multiple)


def fitted_to(fields: Fields, padded: Mapping[str, Padded], rows: Sequence[int], multiple: int | None = None) -> Fields:
    """Fields as wide as the longest of these rows, by their numbers, rounded up to a multiple."""
    return {
        name: found.fit(value, found.width(rows, multiple)) if (found := padded.get(name)) else value
        for name, value in fields.items()
    }


def select(fields: Fields, rows: Sequence[int] | Ints) -> Fields:
    """Some rows of all fields."""
    index = on_device(rows, next(iter(fields.values())).device)
    return {name: value.index_select(0, index) for name, value in fields.items()}


def on_device(numbers: Sequence[int] | Ints, device: torch.device) -> torch.Tensor:
    """Whole numbers on the device. From pinned memory, since a copy from any other waits for all that was launched."""
    host = torch.from_numpy(np.asarray(numbers, dtype=np.int64))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def executors(plan: Plan, count: int) -> Ints:
    """The rank that computes each row; -1 for none."""
    target_R = np.full(count, -1, dtype=np.int64)
    for rank, batches in enumerate(plan):
        for batch in batches:
            target_R[list(batch)] = rank
    return target_R


def move(fields: Fields, padded: Mapping[str, Padded], source_R: Ints, plan: Plan, ranks: Ranks) -> HeldRows:
    """The rows that this rank computes. `fields` are its rows of the R, in their order."""
    held = np.flatnonzero(source_R == ranks.rank).tolist()
    return exchange(fields, padded, held, source_R, executors(plan, len(source_R)), ranks)


def exchange(
    fields: Fields, padded: Mapping[str, Padded], held: Sequence[int], source_R: Ints, target_R: Ints, ranks: Ranks
) -> HeldRows:
    """Moves rows from the ranks `source_R` that hold them to those `target_R` that want them; -1 is no rank.

    `fields` are this rank's rows `held`, in that order. Only rows that move are sent, and only to where they go.
    """
    place = {row: index for index, row in enumerate(held)}
    stayed = {row: index for row, index in place.items() if target_R[row] == ranks.rank}
    moves_R = (source_R >= 0) & (target_R >= 0) & (target_R != source_R)
    if not moves_R.any():
        return HeldRows(stayed, fields, {}, padded)
    to_others = np.flatnonzero(moves_R & (source_R == ranks.rank))
    to_us = np.flatnonzero(moves_R & (target_R == ranks.rank))
    leaving = [to_others[target_R[to_others] == rank] for rank in range(ranks.count)]
    arriving = [to_us[source_R[to_us] == rank] for rank in range(ranks.count)]
    wire = _Wire(fields, padded)
    sent = wire.packed([(rows, [place[row] for row in rows.tolist()]) for rows in leaving])
    received = ranks.all_to_all(sent, [wire.bytes(rows) for rows in leaving], [wire.bytes(rows) for rows in arriving])
    arrivals = {row: len(held) + index for index, row in enumerate(np.concatenate(arriving).tolist())}
    return HeldRows({**stayed, **arrivals}, fields, wire.unpacked(received, arriving), padded)


class _Wire:
    """Rows as bytes: for each rank, field by field, the values of its rows one after another."""

    def __init__(self, fields: Fields, padded: Mapping[str, Padded]):
        self.fields, self.padded = dict(sorted(fields.items())), padded

    def bytes(self, rows: Ints) -> int:
        return sum(self._field_bytes(name, rows) for name in self.fields) if len(rows) else 0

    def packed(self, to_ranks: Iterable[tuple[Ints, list[int]]]) -> torch.Tensor:
        """The bytes of rows (their numbers, and their places in the fields) for each rank."""
        pieces = [self._to_bytes(name, rows, places) for rows, places in to_ranks if len(rows) for name in self.fields]
        device = next(iter(self.fields.values())).device
        return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8, device=device)

    def unpacked(self, received: torch.Tensor, from_ranks: Sequence[Ints]) -> Fields:
        """The rows that arrived, in the order of the ranks that sent them."""
        pieces: dict[str, list[torch.Tensor]] = {name: [received[:0]] for name in self.fields}
        begin = 0
        for rows in from_ranks:
            for name in self.fields:
                end = begin + self._field_bytes(name, rows)
                pieces[name].append(received[begin:end])
                begin = end
        arrived = np.concatenate(from_ranks)
        return {name: self._from_bytes(name, torch.cat(found), arrived) for name, found in pieces.items()}

    def _dtype(self, name: str) -> torch.dtype:
        padded = self.padded.get(name)
        return self.fields[name].dtype if padded is None or padded.wire is None else padded.wire

    def _field_bytes(self, name: str, rows: Ints) -> int:
        padded = self.padded.get(name)
        values = len(rows) * math.prod(self.fields[name].shape[1:]) if padded is None else padded.tokens_R[rows].sum()
        return int(values) * self._dtype(name).itemsize

    def _to_bytes(self, name: str, rows: Ints, places: list[int]) -> torch.Tensor:
        value = select({name: self.fields[name]}, places)[name]
        flat = value.reshape(-1)
        if name in self.padded:
            flat = flat.index_select(0, on_device(self.padded[name].places(rows, value.shape[1]), flat.device))
        return flat.to(self._dtype(name)).view(torch.uint8)

    def _from_bytes(self, name: str, received: torch.Tensor, rows: Ints) -> torch.Tensor:
        value, padded = self.fields[name], self.padded.get(name)
        flat = received.view(self._dtype(name)).to(value.dtype)
        if padded is None:
            return flat.reshape(len(rows), *value.shape[1:])
        width = padded.width(rows)
        whole = value.new_full((len(rows) * width,), padded.padding)
        index = on_device(padded.places(rows, width), flat.device)
        return whole.index_copy(0, index, flat).reshape(len(rows), width)
