"""What a model can do is found by doing it: at start-up a few tokens go through it in each layout.

Owns the questions and their tolerances. Leaves the model as it was: no gradient, no random number, no mode is changed.
Knows nothing of plans, steps or losses.

A tolerance cannot tell a leak from rounding, so the trial asks two different questions:

- Do rows stay apart? The tokens of the OTHER rows are changed, in the same layout and so by the same kernels: a row's
  log-probabilities must not move. And the gradient of a row's log-probabilities with respect to the embeddings of other
  rows must be 0, exactly.
- Is the layout right? Log-probabilities and a gradient must be those of TRL's own form, up to rounding.

Packed attention reads no masks, so whatever a model puts into a mask alone (a window, chunks, a bias) would be lost:
the masks that TRL's form hands to attention are compared with what packed attention computes, on rows that are longer
than any window of the configuration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch

from grpo_plugin.batching.embedding_gradient import embedding_gradient
from grpo_plugin.batching.plan import PackedLayout
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.trial_rows import Lengths, TrialRows
from packed_attention.attention import (
    STANDS_IN_FOR,
    AttentionCall,
    installed_kernel_problem,
    observed_calls,
    register,
)
from packed_attention.masks import lost_in_packing, windows_to_try

# Mean difference of log-probabilities up to which two layouts count as the same: in float32, and in half precision as a
# part of how far log-probabilities spread, since models with small random weights have nearly equal ones. Measured with
# random weights of two scales: rounding to bfloat16 takes up to 0.02, wrong positions (BioGPT, padded) 0.18 and more.
_TOLERANCE = 1e-4
_TOLERANCE_HALF = 0.08

# The same for a gradient: the norm of the difference, relative to the gradient's. In half precision a router of experts
# may choose another one by rounding alone, which moves gradients by up to 0.2 (Mixtral of 8 layers and random weights).
_TOLERANCE_GRADIENT = 1e-3
_TOLERANCE_GRADIENT_HALF = 0.5

# How far log-probabilities may move when other rows change: a few units of float32's last place. Experts may move by
# the rounding of half precision, since other rows change how many tokens an expert computes at once, and so its kernel;
# the gradient, which does not round, then has to say that rows are apart.
_MOVES = 2e-5

# Three rows of one prompt, long enough to be worth sharing, and two of others; the last one's prompt is too short to
# hide what leaks from the row before it.
_ROWS = (Lengths(0, 24, 12), Lengths(0, 24, 5), Lengths(0, 24, 3), Lengths(1, 9, 7), Lengths(2, 2, 6))
# Each row of one set follows a row of the other, in every layout.
_SETS = ((0, 2, 4), (1, 3))

_OTHERS = "packed rows give other log-probabilities"

_Run = Callable[[TrialRows], torch.Tensor]


class Trial:
    """A few tokens in each layout. Every rank asks the same questions in the same order, and all get one answer."""

    def __init__(
        self,
        model: Any,
        config: Any,
        padded: Callable[..., torch.Tensor],
        packed: Callable[..., torch.Tensor],
        ranks: Ranks,
        *,
        half: bool,
        device: torch.device,
    ):
        self._model = model
        self._config = config
        self._run_padded: _Run = lambda rows: padded(rows.ids, rows.mask, rows.width)
        self._packed = packed
        self._ranks = ranks
        self._half = half
        self._tolerance_gradient = _TOLERANCE_GRADIENT_HALF if half else _TOLERANCE_GRADIENT
        self._never = {token for token in (getattr(config, "pad_token_id", None),) if token is not None}
        self._device = device
        self._rows = self._make(_ROWS)
        self._long = self._long_rows()

    @contextlib.contextmanager
    def quiet(self) -> Iterator[Trial]:
        """Inside, the model has neither gradient nor dropout; afterwards it is as it was."""
        training = {module: module.training for module in self._model.modules()}
        devices = [self._device] if self._device.type == "cuda" else []
        self._model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices):
                self._expected = self._run_padded(self._rows)
                self._tolerance = self._rounding()
                yield self
        finally:
            for module, was in training.items():
                module.training = was

    def _rounding(self) -> float:
        spread = self._expected.float()[self._rows.valid].std().item()
        return _TOLERANCE_HALF * spread if self._half else _TOLERANCE

    # -------------------------------------------------------------------------------------------------------- questions

    def problem_of_padding(self) -> str | None:
        """Why rows may not be trimmed or regrouped; None if they may."""
        return self._first_problem(
            "padded rows raise",
            self._change_with_padding,
            lambda: self._dependence(self._run_padded, self._expected, "padded rows"),
        )

    def problem_of_model(self) -> str | None:
        """Why its attention may not be packed, in any way; None if nothing speaks against it."""
        return self._first_problem("attention raises", self._unknown_attention)

    def problem_of_packing(self, layout: PackedLayout) -> str | None:
        """Why rows may not be packed in this layout; None if they may."""

        def run(rows: TrialRows) -> torch.Tensor:
            return self._packed(layout, rows.ids, rows.mask, rows.width)

        base = self._expected.clone()

        def attempt() -> str | None:
            with observed_calls() as calls:
                base.copy_(run(self._rows))
            return self._price(calls)

        return self._first_problem(
            "packed rows raise",
            attempt,
            lambda: self._difference(base, self._expected, self._rows.valid, _OTHERS),
            lambda: self._dependence(run, base, "packed rows"),
            lambda: self._wrong_gradient(run),
            lambda: self._wrong_when_long(run),
        )

    def _first_problem(self, raises: str, *questions: Callable[[], str | None]) -> str | None:
        """The first problem that any rank has. Ranks agree after each question, since the next one runs forwards."""
        for question in questions:
            try:
                problem = question()
            except Exception as error:  # a model may refuse in whatever way; fewer liberties work with any
                problem = f"{raises} {type(error).__name__}: {error}"
            if not self._ranks.all(problem is None):
                return problem or "another rank found a problem"
        return None

    # ---------------------------------------------------------------------------------------------------------- answers

    def _change_with_padding(self) -> str | None:
        last = len(_ROWS) - 2
        alone, rows = self._run_padded(self._rows.alone(last)), slice(last, last + 1)
        what = "log-probabilities depend on padding"
        return self._difference(alone, self._expected[rows], self._rows.valid[rows], what)

    def _unknown_attention(self) -> str | None:
        implementation = getattr(self._config, "_attn_implementation", None)
        if implementation not in STANDS_IN_FOR:
            return f"attention {implementation!r} takes no packed rows ({', '.join(STANDS_IN_FOR)} do)"
        register()
        with observed_calls() as calls:
            self._run_padded((self._long or self._rows).alone(0))
        if not calls:
            return "its layers do not call transformers' attention interface"
        return lost_in_packing(calls, self._config)

    def _price(self, calls: list[AttentionCall]) -> str | None:
        """Why these calls of packed attention would be slow or wrong in training."""
        paths = {call.path for call in calls}
        if "segments" in paths and self._device.type != "cpu":
            return "attention would be computed row by row: there is no kernel of variable length for its precision"
        if "varlen" not in paths:
            return None
        if self._drops(calls):
            return "attention has dropout, which kernels of variable length have not"
        return installed_kernel_problem(self._device, any(call.sliding_window for call in calls))

    def _drops(self, calls: list[AttentionCall]) -> bool:
        """Whether attention has dropout in training."""
        for call in calls:
            call.module.training = True  # of the attention alone
        with observed_calls() as trained:
            self._run_padded(self._rows)
        for call in calls:
            call.module.training = False
        return any(call.dropout for call in trained)

    def _wrong_when_long(self, run: _Run) -> str | None:
        if self._long is None:
            return None
        return self._difference(run(self._long), self._run_padded(self._long), self._long.valid, _OTHERS)

    def _difference(self, found: torch.Tensor, expected: torch.Tensor, valid: torch.Tensor, what: str) -> str | None:
        difference = (found.float() - expected.float())[valid].abs().mean().item()
        if difference <= self._tolerance:
            return None
        return f"{what} (by {difference:.1g} on average; {self._tolerance:.1g} is taken)"

    def _dependence(self, run: _Run, base: torch.Tensor, what: str) -> str | None:
        """Whether a row's numbers, which are `base`, depend on the tokens of other rows."""
        moves = []
        for rows in _SETS:
            valid = self._rows.valid & self._rows.kept(rows)[:, self._rows.prompts :]
            moves.append((run(self._rows.changed(rows)).float() - base.float())[valid].abs())
        moved = torch.cat(moves)
        gradient = self._gradient(run, _SETS[0])
        others = self._rows.only_outside(_SETS[0])
        leaked = None if gradient is None or not len(others) else gradient[others].abs().max().item()
        apart = moved.mean().item() <= self._tolerance if leaked == 0.0 else moved.max().item() <= _MOVES and not leaked
        if apart:
            return None
        reached = f", and their gradients reach other rows by up to {leaked:.1g}" if leaked else ""
        return f"{what} do not stay apart: other rows move log-probabilities by up to {moved.max():.1g}{reached}"

    def _wrong_gradient(self, run: _Run) -> str | None:
        everyone = range(len(_ROWS))
        expected, found = self._gradient(self._run_padded, everyone), self._gradient(run, everyone)
        if expected is None or found is None:
            return None
        difference = ((found - expected).norm() / expected.norm()).item()
        if difference <= self._tolerance_gradient:
            return None
        taken = f"{self._tolerance_gradient:g} is taken"
        return f"packed rows give another gradient (by {difference:.1g} of its norm; {taken})"

    def _gradient(self, run: _Run, rows: Collection[int]) -> torch.Tensor | None:
        """The gradient of these rows' log-probabilities with respect to the embedding of each token id."""
        kept = self._rows.kept(rows)[:, self._rows.prompts :]
        return embedding_gradient(self._model, self._rows.ids, lambda: run(self._rows)[kept])

    # ------------------------------------------------------------------------------------------------------------- rows

    def _make(self, lengths: tuple[Lengths, ...]) -> TrialRows:
        return TrialRows.make(lengths, self._config.vocab_size, self._never, self._device)

    def _long_rows(self) -> TrialRows | None:
        """Rows longer than any window of the configuration; None where there is none, or none that rows can reach."""
        windows = windows_to_try(self._config)
        if not windows:
            return None
        prompt = max(windows) + 2
        return self._make((Lengths(0, prompt, 12), Lengths(0, prompt, 5), Lengths(1, 3, 7)))
