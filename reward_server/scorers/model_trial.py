"""How the rows of a batch may lie in a model's forward pass is found by doing it: when the model is loaded, a few rows
go through it in each form.

    packed    one sequence without padding, kept apart by attention       no padding is computed
    padded    on the right, to the longest row
    alone     a forward pass for each row                                  for models whose scores depend on padding

Owns the questions and their tolerances. Knows nothing of how a form is computed, nor of what the numbers mean.

Rounding and a leak look alike to a tolerance, so packed rows are asked what has no rounding: the OTHER rows are
changed, in the same layout and so by the same kernels, and a row's numbers must not move. Then all change places, and
each row by itself, packed, must give the numbers that it gives without packing. Packed attention reads no masks, so the
masks that the model makes are compared with what it computes, on a row longer than any window of the configuration.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from packed_attention.attention import STANDS_IN_FOR, AttentionCall, installed_kernel_problem, observed_calls, register
from packed_attention.masks import lost_in_packing, windows_to_try

Form = Literal["packed", "padded", "alone"]
Rows = list[list[int]]
Run = Callable[[Form, Rows], list[torch.Tensor]]
"""From rows of token ids to the numbers of each, whatever they are."""

_LENGTHS = (36, 29, 16, 8, 3)
_SETS = ((0, 2, 4), (1, 3))
# On a CPU, rows are not made longer than this for a trial, which would take minutes: such models are not packed there.
_LONGEST_ON_CPU = 2048
# Among the first ids: a model that takes images too has their ids among the last.
_MOST_IDS = 1000

# How far a row's numbers may move when other rows change, relative to the largest number. In half precision that is
# less than a unit of the last place.
_MOVES = 1e-5
# Mean difference up to which numbers count as the same. In half precision it is a part of how far they spread and of
# how large they are: a row by itself differs by the attention kernel alone; padded rows also by matrix products of
# other shapes.
_SAME = 1e-4
_SAME_HALF = 0.05
_SIMILAR_HALF = 0.1


@dataclass(frozen=True, slots=True)
class Choice:
    """A form, and why it is none of those that are faster."""

    form: Form
    reason: str = ""

    def __str__(self) -> str:
        said = {
            "packed": "rows are packed: no padding is computed",
            "padded": f"rows are padded, since {self.reason}",
            "alone": f"each row goes through the model alone, since {self.reason}",
        }
        return said[self.form]


class Trial:
    """A few rows of a loaded model."""

    def __init__(
        self,
        run: Run,
        config: Any,
        device: torch.device,
        modules: Collection[Any],
        *,
        half: bool,
        vocabulary: int,
        most_tokens: int | None,
    ):
        """`modules` are the model's. `most_tokens` is the longest row that will ever be scored, None for no limit."""
        self._run = run
        self._config = config
        self._device = device
        self._modules = modules
        self._half = half
        self._most_tokens = most_tokens
        self._rng = random.Random(0)
        pad_id = getattr(config, "pad_token_id", None)
        self._ids = [token for token in range(min(vocabulary, _MOST_IDS)) if token != pad_id]
        shorter = [length for length in _LENGTHS if most_tokens is None or length <= most_tokens]
        self._rows = [self._row(length) for length in shorter or [1]]

    def choice(self, never_packed: str = "") -> Choice:
        """The fastest form that gives the right numbers. `never_packed` is why packing is out of the question."""
        try:
            self._alone = [self._run("padded", [row])[0] for row in self._rows]
        except Exception as error:  # there is nothing to compare with; scoring will say more
            return Choice("padded", f"the model raises {_named(error)}")
        reason = never_packed or self._problem("packed rows raise", self._problem_of_packing)
        if not reason:
            return Choice("packed")
        problem = self._problem("padded rows raise", self._problem_of_padding)
        return Choice("alone", problem) if problem else Choice("padded", reason)

    def _problem(self, raises: str, question: Callable[[], str]) -> str:
        try:
            return question()
        except Exception as error:  # a model may refuse in whatever way; another form works with any
            return f"{raises} {_named(error)}"

    def _problem_of_packing(self) -> str:
        return (
            self._untried_window()
            or self._unknown_attention()
            or self._price()
            or self._dependence()
            or self._difference([self._run("packed", [row])[0] for row in self._rows], _SAME_HALF, "packed rows")
            or self._difference(self._run("packed", self._rows), _SIMILAR_HALF, "packed rows")
            or self._wrong_when_long()
        )

    def _problem_of_padding(self) -> str:
        return self._difference(self._run("padded", self._rows), _SIMILAR_HALF, "padded rows")

    def _untried_window(self) -> str:
        longest = max(self._long_lengths(), default=0)
        is_long = self._device.type == "cpu" and longest > _LONGEST_ON_CPU
        return f"a window of {longest - 2} tokens is too long to be tried on a CPU" if is_long else ""

    def _unknown_attention(self) -> str:
        implementation = getattr(self._config, "_attn_implementation", None)
        if implementation not in STANDS_IN_FOR:
            return f"attention {implementation!r} takes no packed rows ({', '.join(STANDS_IN_FOR)} do)"
        register()
        longest = self._row(max(self._long_lengths(), default=max(map(len, self._rows))))
        calls = self._calls("padded", [longest])
        if not calls:
            return "its layers do not call transformers' attention interface"
        return lost_in_packing(calls, self._config) or ""

    def _price(self) -> str:
        calls = self._calls("packed", self._rows)
        paths = {call.path for call in calls}
        if "original" in paths:
            return "not all of its attention is told which rows there are"
        if "segments" in paths and self._device.type != "cpu":
            return "attention would be computed row by row: there is no kernel of variable length for its precision"
        if "varlen" not in paths:
            return ""
        return installed_kernel_problem(self._device, any(call.sliding_window for call in calls)) or ""

    def _calls(self, form: Form, rows: Rows) -> list[AttentionCall]:
        """The model's calls of attention. Other models may serve meanwhile."""
        with observed_calls() as calls:
            self._run(form, rows)
        return [call for call in calls if call.module in self._modules]

    def _dependence(self) -> str:
        base = self._run("packed", self._rows)
        moved = 0.0
        for kept in _SETS:
            found = self._run("packed", self._changed(kept))
            moved = max([moved, *(_distance(found[row], base[row]) for row in kept if row < len(base))])
        turned = self._run("packed", self._rows[::-1])[::-1]
        largest = max(float(values.abs().max()) for values in base)
        if moved > _MOVES * largest:
            return f"packed rows do not stay apart: other rows move a score by up to {moved:.1g}"
        return self._difference(turned, _SAME_HALF, "rows packed in another order", base)

    def _difference(
        self, found: list[torch.Tensor], taken: float, what: str, expected: list[torch.Tensor] | None = None
    ) -> str:
        """Whether numbers differ from those of each row alone by more than rounding does."""
        alone = torch.cat([values.flatten() for values in expected or self._alone])
        difference = float((torch.cat([values.flatten() for values in found]) - alone).abs().mean())
        spread = float(alone.std()) if len(alone) > 1 else 0.0
        size = float(alone.abs().mean())
        tolerance = taken * (spread + 0.5 * size) if self._half else _SAME * max(1.0, size)
        if difference <= tolerance:
            return ""
        return f"{what} give other scores (by {difference:.1g} on average; {tolerance:.1g} is taken)"

    def _wrong_when_long(self) -> str:
        lengths = self._long_lengths()
        if not lengths:
            return ""
        rows = [self._row(length) for length in lengths]
        alone = [self._run("padded", [row])[0] for row in rows]
        return self._difference(self._run("packed", rows), _SIMILAR_HALF, "long packed rows", alone)

    # ------------------------------------------------------------------------------------------------------------- rows

    def _row(self, length: int) -> list[int]:
        return self._rng.choices(self._ids, k=length)

    def _long_lengths(self) -> Sequence[int]:
        """Lengths of rows that are longer than any window of the configuration; none where rows never are."""
        most = self._most_tokens
        windows = [window for window in windows_to_try(self._config) if most is None or window + 2 <= most]
        return (max(windows) + 2, 7) if windows else ()

    def _changed(self, kept: Collection[int]) -> Rows:
        return [row if number in kept else self._row(len(row)) for number, row in enumerate(self._rows)]


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max())


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
