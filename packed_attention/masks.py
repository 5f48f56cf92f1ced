"""What a model tells its attention by a mask alone, which packed attention would not know.

Owns the comparison of a mask with what packed attention computes, and the windows that a configuration names. Knows
nothing of how calls of attention were observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from packed_attention.attention import AttentionCall
from packed_attention.varlen import visible

# Rows are not made longer than this for a trial, whatever the window.
LONGEST_WINDOW = 8192


def windows_to_try(config: Any) -> list[int]:
    """Windows that rows can be made longer than."""
    reach = min(LONGEST_WINDOW, _longest_row(config) - 32)
    return [window for window in _windows(config) if window <= reach]


def lost_in_packing(calls: Sequence[AttentionCall], config: Any) -> str | None:
    """What these calls, of rows that are not packed, are told by their masks alone; None if nothing."""
    problems = (_lost_mask(call, config) for call in calls)
    return next((problem for problem in problems if problem), _untried_window(calls, config))


def _longest_row(config: Any) -> int:
    return getattr(config, "max_position_embeddings", None) or LONGEST_WINDOW


def _windows(config: Any) -> list[int]:
    """Every number of tokens in the configuration that attention may be limited to."""
    values = config.to_dict().items()
    names = [name for name, value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0]
    return [getattr(config, name) for name in names if "window" in name or "attention_chunk" in name]


def _untried_window(calls: Sequence[AttentionCall], config: Any) -> str | None:
    """A window that is too long to try and that no attention call receives."""
    windows = [window for window in _windows(config) if LONGEST_WINDOW < window < _longest_row(config)]
    if not windows or getattr(config, "layer_types", None) or any(call.sliding_window for call in calls):
        return None
    return f"its configuration has a window of {windows[0]} tokens, which no attention call receives"


def _lost_mask(call: AttentionCall, config: Any) -> str | None:
    """What only the mask of this attention call says, so that packed attention would not know it."""
    layer, kinds = getattr(call.module, "layer_idx", None), getattr(config, "layer_types", None) or ()
    kind = kinds[layer] if isinstance(layer, int) and layer < len(kinds) else ""
    if call.sliding_window is None and ("sliding" in kind or "chunked" in kind):
        return f"layer {layer} has {kind}, which only its mask says, and packed rows have no mask"
    if call.attention_mask is None or call.attention_mask.dim() < 4:  # flash attention is told by arguments alone
        return None
    mask = call.attention_mask
    keys = mask.shape[-1]
    sees = mask if mask.dtype == torch.bool else mask == 0
    told = visible(call.queries, keys, call.sliding_window, mask.device) if call.causal else torch.ones_like(sees)
    biased = mask.dtype != torch.bool and bool((mask[sees.logical_not()] > torch.finfo(mask.dtype).min / 2).any())
    if biased or not bool((sees == told).all()):
        what = "rows are causal" if call.causal else "tokens look at all of their row"
        return f"an attention mask says more than that {what}; packed rows have no mask"
    return None
