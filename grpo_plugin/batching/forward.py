"""How rows go through the model: padded or packed, whichever the model takes and gives the same numbers for.

Owns the finding out (once, on a few tokens) and one forward of given rows. Knows nothing of plans, windows or losses.

What a model cannot do is found by doing it: log-probabilities of a few tokens, each way, against TRL's own. That also
meets models whose code is not transformers' own, and kernels that are not what they seem on the device at hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger

from grpo_plugin.batching.packing import STANDS_IN_FOR, pack, register
from grpo_plugin.batching.plan import Layout, PackedLayout, PaddedLayout, Rows, attention_cost
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.table import prompt_numbers

logger = get_logger(__name__)

LogProbs = tuple[torch.Tensor, torch.Tensor | None]

# What a micro-batch costs beside its tokens, in tokens: launching kernels, and under ZeRO-3 gathering every layer. On a
# GPU a forward below some thousand tokens takes as long as one of a thousand.
_OVERHEAD_TOKENS = {"cpu": 32}
_OVERHEAD_TOKENS_GPU = 1024

# Mean difference of log-probabilities up to which two ways count as the same: in float32, and in half precision.
_TOLERANCE = 1e-4
_TOLERANCE_HALF = 3e-2


def packed_forward(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, width: int, layout: PackedLayout, autocast: Any
) -> LogProbs:
    """Log-probabilities and entropies of completions `width` wide, shape (N, width)."""
    families = layout.families(_rows(input_ids, attention_mask, width), range(len(input_ids)))
    packed = pack(input_ids, attention_mask, width, families)
    with autocast():
        output = model(**packed.inputs, fused_lm_head=True)
    entropy = None if output.entropy is None else packed.spread(output.entropy)
    return packed.spread(output.log_probs), entropy


def _rows(input_ids: torch.Tensor, attention_mask: torch.Tensor, width: int) -> Rows:
    prompts = input_ids.shape[1] - width
    numbers = prompt_numbers(input_ids[:, :prompts], attention_mask[:, :prompts])
    tokens = [mask.sum(1).cpu().numpy() for mask in (attention_mask[:, :prompts], attention_mask[:, prompts:])]
    return Rows(tokens[0], tokens[1], numbers.numpy(), np.zeros(len(input_ids), dtype=np.int64))


def find_layout(
    model: Any,
    config: Any,
    padded: Callable[..., torch.Tensor],
    autocast: Any,
    ranks: Ranks,
    *,
    half: bool,
    packs: bool,
    shares: bool,
) -> Layout | None:
    """The cheapest layout in which this model's numbers are TRL's; None if they depend on padding. Logs what is not so.

    `padded(input_ids, attention_mask, width)` is TRL's own way; `half` says that it computes in half precision. Every
    rank calls this at the same time, and all of them find the same.
    """
    attention = attention_cost(*_widths(config))
    device = next(model.parameters()).device
    overhead = _OVERHEAD_TOKENS.get(device.type, _OVERHEAD_TOKENS_GPU)
    trial = _Trial(model, config, padded, autocast, ranks, _TOLERANCE_HALF if half else _TOLERANCE, device)
    with trial.quiet():
        problem = trial.problem_of_padding()
        if problem:
            logger.warning(f"rows keep TRL's padding and micro-batches, since for this model {problem}")
            return None
        # Kernels of variable length take half precision; elsewhere a GPU would launch one for each row.
        if packs and (half or device.type == "cpu"):
            layout = _packed_layout(trial, attention, shares)
            if layout is not None:
                return layout
    return PaddedLayout(attention, overhead)


def _packed_layout(trial: _Trial, attention: float, shares: bool) -> PackedLayout | None:
    shared, plain = PackedLayout(attention, shares=True), PackedLayout(attention, shares=False)
    problem = trial.problem_of_packing(shared) if shares else None
    if shares and not problem:
        return shared
    if plain_problem := trial.problem_of_packing(plain):
        logger.warning(f"rows are padded, since for this model {plain_problem}")
        return None
    if problem:
        logger.warning(f"a prompt is computed for each completion, since for this model {problem}")
    return plain


def _widths(config: Any) -> tuple[int, int]:
    """Hidden and intermediate size; a guess where they have other names, since only an estimate needs them."""
    hidden, inner = (getattr(config, name, None) for name in ("hidden_size", "intermediate_size"))
    hidden = hidden if isinstance(hidden, int) else 1024
    return hidden, inner if isinstance(inner, int) else 4 * hidden


class _Trial:
    """A few tokens in each layout against TRL's own."""

    def __init__(
        self,
        model: Any,
        config: Any,
        padded: Callable[..., torch.Tensor],
        autocast: Any,
        ranks: Ranks,
        tolerance: float,
        device: torch.device,
    ):
        self._model = model
        self._padded = padded
        self._autocast = autocast
        self._ranks = ranks
        self._tolerance = tolerance
        self._implementation = getattr(config, "_attn_implementation", None)
        self._ids, self._mask = _trial_rows(config.vocab_size, device)
        self._width = int(_TRIAL_COMPLETIONS.max())

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Without gradient and dropout."""
        training = {module: module.training for module in self._model.modules()}
        self._model.eval()
        try:
            with torch.no_grad():
                self._expected = self._padded(self._ids, self._mask, self._width)
                yield
        finally:
            for module, was in training.items():
                module.training = was

    def problem_of_padding(self) -> str | None:
        prompt = int(_TRIAL_PROMPTS[-1])
        start = self._ids.shape[1] - self._width - prompt
        alone = self._padded(self._ids[-1:, start:], self._mask[-1:, start:], self._width)
        return self._difference(alone, self._expected[-1:], "log-probabilities depend on padding")

    def problem_of_packing(self, layout: PackedLayout) -> str | None:
        if self._implementation not in STANDS_IN_FOR:
            return f"attention {self._implementation!r} takes no packed rows ({', '.join(STANDS_IN_FOR)} do)"
        register()
        try:
            found, _ = packed_forward(self._model, self._ids, self._mask, self._width, layout, self._autocast)
        except Exception as error:  # a model may refuse in whatever way; padded rows work with any
            return self._agreed(f"packed rows raise {type(error).__name__}: {error}")
        return self._difference(found, self._expected, "packed rows give other log-probabilities")

    def _difference(self, found: torch.Tensor, expected: torch.Tensor, what: str) -> str | None:
        difference = (found.float() - expected.float()).abs().mean().item()
        if difference <= self._tolerance:
            return self._agreed(None)
        return self._agreed(f"{what} (by {difference:.1g} on average; {self._tolerance:g} is taken)")

    def _agreed(self, problem: str | None) -> str | None:
        """A problem of one rank is one of all: they would otherwise run forwards that the others do not."""
        return None if self._ranks.all(problem is None) else problem or "another rank found other log-probabilities"


# Three rows of one prompt, long enough to be worth sharing, and one of another.
_TRIAL_PROMPTS = np.array([24, 24, 24, 9])
_TRIAL_COMPLETIONS = np.array([12, 5, 1, 7])


def _trial_rows(vocabulary: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, prompts left-padded, completions right-padded; the global generator stays."""
    generator = torch.Generator().manual_seed(0)
    width = int(_TRIAL_PROMPTS.max())
    shape = (len(_TRIAL_PROMPTS), width + int(_TRIAL_COMPLETIONS.max()))
    # Among the first ids: a model that sees takes later ones for images.
    ids = torch.randint(1, min(vocabulary, 1000), shape, generator=generator)
    ids[1:3, :width] = ids[0, :width]
    column = torch.arange(shape[1])[None]
    first = torch.from_numpy(width - _TRIAL_PROMPTS)[:, None]
    end = torch.from_numpy(width + _TRIAL_COMPLETIONS)[:, None]
    return ids.to(device), ((column >= first) & (column < end)).long().to(device)
