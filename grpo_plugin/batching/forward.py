"""How rows go through the model: padded or packed, whichever is cheapest among those that give TRL's numbers.

Owns the choice of a layout and one forward of packed rows. What a model can do is found out by `trial`. Knows nothing
of plans, steps or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import is_compiled_module

from grpo_plugin.batching.packing import DeviceIndex, PackingIndex, to_device
from grpo_plugin.batching.plan import Layout, MicroBatch, PackedLayout, PaddedLayout, Rows, attention_cost
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.sharing import KeyCost
from grpo_plugin.batching.table import prompt_numbers
from grpo_plugin.batching.trial import Trial

logger = get_logger(__name__)

PACKING = "packing"  # the key under which a micro-batch says where its tokens go in a packed forward

LogProbs = tuple[torch.Tensor, torch.Tensor | None]

# What a micro-batch costs beside its tokens, in tokens: launching kernels, and under ZeRO-3 gathering every layer. On a
# GPU a forward below some thousand tokens takes as long as one of a thousand.
_OVERHEAD_TOKENS = {"cpu": 32}
_OVERHEAD_TOKENS_GPU = 1024


def packed_forward(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    width: int,
    layout: PackedLayout,
    autocast: Any,
    index: DeviceIndex | None = None,
) -> LogProbs:
    """Log-probabilities and entropies of completions `width` wide, shape (N, width).

    `index` is where the rows' tokens go (`with_packing`); without it the host reads the rows' lengths, once.
    """
    if index is None:
        rows = read_rows(input_ids, attention_mask, width)
        (index,) = packing_indices([(rows, input_ids.shape[1] - width, width)], layout, input_ids.device)
    assert index.index.shape == (len(input_ids), width), "the indices are of another micro-batch"
    packed = index.pack(input_ids)
    if is_compiled_module(model):
        logger.warning_once(
            "attention of packed rows is not compiled, since its segments differ in every micro-batch; the rest of the "
            "model is (torch_compile)"
        )
    with autocast():
        output = model(**packed.inputs, fused_lm_head=True)
    entropy = None if output.entropy is None else packed.spread(output.entropy)
    return packed.spread(output.log_probs), entropy


def with_packing(
    parts: Sequence[dict[str, Any]], batches: Sequence[MicroBatch], rows: Rows, layout: Layout | None
) -> list[dict[str, Any]]:
    """Micro-batches with where their tokens go in a packed forward (`PACKING`), all sent to the device in one copy.

    `batches` are the numbers of their rows in `rows`, which the plan is made of: nothing is read from the device. An
    empty one is a filler, a row of one prompt token and no completion. As they are where they are not packed.
    """
    if not isinstance(layout, PackedLayout):
        return list(parts)
    sizes = [(part["prompt_ids"].shape[1], part["completion_ids"].shape[1]) for part in parts]
    known = [(_subset(rows, batch), *size) for batch, size in zip(batches, sizes, strict=True)]
    indices = packing_indices(known, layout, parts[0]["prompt_ids"].device)
    return [{**part, PACKING: index} for part, index in zip(parts, indices, strict=True)]


def _subset(rows: Rows, batch: MicroBatch) -> Rows:
    if not batch:
        return Rows(*(np.array([value], dtype=np.int64) for value in (1, 0, 0, 0)))
    index = np.asarray(batch, dtype=np.int64)
    columns = (rows.prompt_tokens_R, rows.completion_tokens_R, rows.prompt_R, rows.rank_R)
    return Rows(*(column[index] for column in columns))


def packing_indices(
    batches: Sequence[tuple[Rows, int, int]], layout: PackedLayout, device: torch.device
) -> list[DeviceIndex]:
    """Where the tokens of each micro-batch (its rows, prompt width, completion width) go, in one copy to the device."""
    # A GPU's allocator, kernels and compiled graphs gain from lengths that come back; a CPU would only compute more.
    few_lengths = device.type != "cpu"
    indices = [
        PackingIndex.of(rows, layout.families(rows, range(len(rows.rank_R))), prompts, completions, few_lengths)
        for rows, prompts, completions in batches
    ]
    return to_device(indices, device)


def read_rows(input_ids: torch.Tensor, attention_mask: torch.Tensor, width: int) -> Rows:
    """The rows' lengths and which prompts are equal, read from the device in one copy.

    ValueError if a row's tokens are not side by side: prompts are padded on the left, completions on the right.
    """
    prompts = input_ids.shape[1] - width
    keep = attention_mask.bool()
    table = torch.stack(
        [
            keep[:, :prompts].sum(1),
            keep[:, prompts:].sum(1),
            prompt_numbers(input_ids[:, :prompts], keep[:, :prompts]),
            (keep[:, 1:prompts] < keep[:, : max(0, prompts - 1)]).any(1)
            | (keep[:, prompts + 1 :] > keep[:, prompts:-1]).any(1),
        ]
    )
    prompt_N, completion_N, number_N, gap_N = table.cpu().numpy()
    if gap_N.any():
        row = int(np.flatnonzero(gap_N)[0])
        raise ValueError(f"row {row} has padding between its tokens; pad prompts on the left, completions on the right")
    return Rows(prompt_N, completion_N, number_N, np.zeros_like(prompt_N))


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
    device = next(model.parameters()).device

    def packed(layout: PackedLayout, ids: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
        return packed_forward(model, ids, mask, width, layout, autocast)[0]

    hidden, inner = _widths(config)
    attention, keys = attention_cost(hidden, inner), KeyCost.of(hidden, inner, _key_width(config, hidden), device.type)
    with Trial(model, config, padded, packed, ranks, half=half, device=device).quiet() as trial:
        problem = trial.problem_of_padding()
        if problem:
            logger.warning(f"rows keep TRL's padding and micro-batches, since for this model {problem}")
            return None
        # Kernels of variable length take half precision; elsewhere a GPU would launch one for each row.
        if packs and (half or device.type == "cpu"):
            layout = _packed_layout(trial, PackedLayout(attention, shares, keys))
            if layout is not None:
                return layout
    return PaddedLayout(attention, _OVERHEAD_TOKENS.get(device.type, _OVERHEAD_TOKENS_GPU))


def _packed_layout(trial: Trial, wanted: PackedLayout) -> PackedLayout | None:
    shares, shared, plain = wanted.shares, replace(wanted, shares=True), replace(wanted, shares=False)
    if problem := trial.problem_of_model():
        logger.warning(f"rows are padded, since for this model {problem}")
        return None
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


def _key_width(config: Any, hidden: int) -> int:
    """Of all key heads together; the hidden size where the configuration does not say."""
    heads, queries, size = (
        getattr(config, name, None) for name in ("num_key_value_heads", "num_attention_heads", "head_dim")
    )
    if not isinstance(size, int) and isinstance(queries, int):
        size = hidden // queries
    return heads * size if isinstance(heads, int) and isinstance(size, int) else hidden
