"""What a forward of packed rows keeps for its backward, in bytes, beside one of padded rows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from grpo_plugin.batching.forward import packed_forward
from grpo_plugin.batching.plan import PackedLayout
from grpo_plugin.batching.trial_rows import Lengths, TrialRows
from packed_attention.attention import register
from tests.support.models import make_model

pytestmark = pytest.mark.slow

ALIKE = [Lengths(number, 8, 40) for number in range(8)]  # nothing to leave out
ONE_PROMPT = [Lengths(0, 64, 16)] * 8  # 640 tokens of rows, 192 where the prompt is computed once


def kept(lengths: Sequence[Lengths], layout: PackedLayout | None) -> int:
    """Bytes of the tensors that the backward needs, each storage once, weights left out."""
    register()
    model = make_model("llama")
    model.train()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)  # so that its address is not given out again
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = TrialRows.make(lengths, 259, (), "cpu")
    with saved_tensors_hooks(note, lambda tensor: tensor):
        if layout is None:
            labels = torch.cat([rows.ids[:, 1:], rows.ids[:, :1]], dim=1)
            model(input_ids=rows.ids, attention_mask=rows.mask, shift_labels=labels, fused_lm_head=True)
        else:
            packed_forward(model, rows.ids, rows.mask, rows.width, layout, contextlib.nullcontext)
    return sum(sizes.values())


def test_a_packed_token_keeps_what_a_padded_one_keeps() -> None:
    assert kept(ALIKE, PackedLayout(0.01, shares=False)) < 1.15 * kept(ALIKE, None)


def test_a_shared_prompt_is_kept_once() -> None:
    shared = kept(ONE_PROMPT, PackedLayout(0.01, shares=True))
    assert shared < 0.45 * kept(ONE_PROMPT, PackedLayout(0.01, shares=False))
    assert shared < 0.5 * kept(ONE_PROMPT, None)
