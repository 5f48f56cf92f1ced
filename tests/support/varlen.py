"""Kernels of variable length that compute on the CPU, with the signature of each torch that has one."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def attend(q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, window: tuple[int, int], scale: float | None) -> Any:
    """Attention a sequence, with the last query aligned with the last key; a window as FlashAttention has it."""
    assert window == (-1, -1) or window[1] == 0, "packed rows are causal, or look at all of their row"
    outputs = []
    for number in range(len(ends_q) - 1):
        queries = q[ends_q[number] : ends_q[number + 1]].transpose(0, 1)
        keys, values = (x[ends_k[number] : ends_k[number + 1]].transpose(0, 1) for x in (k, v))
        own, seen = queries.shape[1], keys.shape[1]
        distance = torch.arange(seen - own, seen)[:, None] - torch.arange(seen)[None]
        sees = ((distance >= 0) | (window[1] < 0)) & ((distance <= window[0]) | (window[0] < 0))
        outputs.append(functional.scaled_dot_product_attention(queries, keys, values, attn_mask=sees, scale=scale))
    return torch.cat(outputs, dim=1).transpose(0, 1)


def torch_2_10(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
    is_causal: bool = False, return_aux: Any = None,
) -> Any:  # fmt: skip
    assert query.shape[1:] == key.shape[1:] == value.shape[1:]
    _check(cu_seq_q, cu_seq_k, max_q, max_k)
    return attend(query, key, value, cu_seq_q, cu_seq_k, (-1, 0 if is_causal else -1), None)


def torch_2_11(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Any:  # fmt: skip
    assert query.shape[1:] == key.shape[1:] == value.shape[1:]
    _check(cu_seq_q, cu_seq_k, max_q, max_k)
    return attend(query, key, value, cu_seq_q, cu_seq_k, window_size, scale)


def torch_2_12(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False, seqused_k: Any = None, block_table: Any = None, num_splits: int | None = None,
) -> Any:  # fmt: skip
    assert query.shape[2] == key.shape[2] == value.shape[2]
    assert enable_gqa or query.shape[1] == key.shape[1]
    _check(cu_seq_q, cu_seq_k, max_q, max_k)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return attend(query, key, value, cu_seq_q, cu_seq_k, window_size, scale)


def _check(ends_q: Any, ends_k: Any, max_q: int, max_k: int) -> None:
    assert ends_q.dtype == ends_k.dtype == torch.int32
    assert (max_q, max_k) == (int(ends_q.diff().max()), int(ends_k.diff().max()))


SIGNATURES = {"2.10": torch_2_10, "2.11": torch_2_11, "2.12": torch_2_12, "2.13": torch_2_12}
