"""Segments: which tokens of a packed sequence may look at which, and the lengths that packed sequences are rounded to.

Owns these values alone. Knows nothing of heads and kernels, nor of how rows become segments.

Legend: P segments, K keys (the tokens that each segment sees, one segment after another).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Segments:
    """Which tokens may look at which, as the model's attention layers receive it.

    A segment's tokens look at themselves causally and at all of the segment `before`, if there is one (-1: none). With
    `any_direction`, layers that are not causal (an encoder's) may take the segments too, where none has one before it:
    each token then looks at all of its segment.
    """

    # Not a dataclass: Dynamo guards on every field of a frozen one, and would compile again for every packed sequence.
    def __init__(
        self,
        lengths: list[int],
        before: list[int],
        ends_q: torch.Tensor,
        ends_k: torch.Tensor,
        keys: torch.Tensor | None,
        any_direction: bool = False,
    ):
        self.any_direction = any_direction and keys is None
        self.lengths = lengths
        self.before = before
        self.ends_q = ends_q  # cumulative lengths of queries, shape (P + 1,), int32
        self.ends_k = ends_k  # cumulative lengths of keys, shape (P + 1,), int32
        self.keys = keys  # which token each key is, shape (K,); None where keys are the queries' own tokens
        self.seen = seen(lengths, before)  # how many tokens the last token of each segment looks at
        self.tokens = sum(lengths)
        self.longest_q, self.longest_k = max(lengths), max(self.seen)
        self.runs = _runs(before)
        self._masks: dict[tuple[Any, ...], torch.Tensor] = {}

    def mask(self, segment: int, sliding_window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """What a segment's attention adds for each pair of tokens, 0 or -inf; None for plain causality.

        Shape (its tokens, those that it sees), on the device of `like` and of its type. Kept for the other layers.
        """
        own, seen = self.lengths[segment], self.seen[segment]
        if own == seen and (sliding_window is None or seen <= sliding_window):
            return None
        key = (own, seen, sliding_window, like.device, like.dtype)
        if key not in self._masks:
            hidden = ~visible(own, seen, sliding_window, like.device)
            self._masks[key] = like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
        return self._masks[key]


def visible(queries: int, keys: int, sliding_window: int | None, device: torch.device) -> torch.Tensor:
    """Whether each of the last `queries` tokens looks at each of `keys` tokens: shape (queries, keys)."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    return distance >= 0 if sliding_window is None else (distance >= 0) & (distance < sliding_window)


class Run(NamedTuple):
    """Segments side by side that have the same one before them; `before` is the number of that one's run, or -1."""

    before: int
    members: range


def _runs(before: list[int]) -> list[Run]:
    runs: list[Run] = []
    run_of: dict[int, int] = {}
    for segment, other in enumerate(before):
        if other >= 0 and before[segment - 1] == other:
            runs[-1] = Run(runs[-1].before, range(runs[-1].members.start, segment + 1))
        else:
            run_of[segment] = len(runs)
            runs.append(Run(run_of[other] if other >= 0 else -1, range(segment, segment + 1)))
    return runs


def seen(lengths: list[int], before: list[int]) -> list[int]:
    """How many tokens the last token of each segment looks at."""
    return [own + (lengths[other] if other >= 0 else 0) for own, other in zip(lengths, before, strict=True)]


def round_length(tokens: int) -> int:
    """The next of 64 lengths between two powers of two: at most 1/64 more, and multiples of 8 beyond 512."""
    multiple = 1 << max(0, (tokens - 1).bit_length() - 7)
    return -(-tokens // multiple) * multiple
