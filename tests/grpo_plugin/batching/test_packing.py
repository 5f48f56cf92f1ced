"""Packed rows: who looks at whom, and the same numbers as padded rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl.trainer.utils import add_fused_lm_head

from grpo_plugin.batching.packing import IGNORED, Segment, Segments, _KernelInputs, pack, register
from tests.support.builders import save_tiny_model


def rows(*lengths: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Rows of (prompt's number, prompt tokens, completion tokens): ids, mask, width of the completions."""
    width, completions = max(p for _, p, _ in lengths), max(c for _, _, c in lengths)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 250, (len(lengths), width + completions), generator=generator)
    mask = torch.zeros_like(ids)
    for row, (number, prompt, completion) in enumerate(lengths):
        mask[row, width - prompt : width + completion] = 1
        ids[row, :width] = torch.randint(3, 250, (width,), generator=torch.Generator().manual_seed(number))
    return ids, mask, completions


def test_the_layout_is_that_of_the_picture() -> None:
    p1, p2, p3, a1, a2, b1, q1, q2, c1 = range(11, 20)
    ids = torch.tensor([[p1, p2, p3, a1, a2], [p1, p2, p3, b1, 0], [0, q1, q2, c1, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 0]])
    packed = pack(ids, mask, 2, [(0, 1), (2,)])
    assert packed.inputs["input_ids"].tolist() == [[p1, p2, p3, a1, a2, p3, b1, q1, q2, c1]]
    assert packed.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 2]]
    n = IGNORED
    assert packed.inputs["shift_labels"].tolist() == [[n, n, a1, a2, n, b1, n, n, c1, n]]
    segments = (Segment(0, 2), Segment(2, 5, (0, 2)), Segment(5, 7, (0, 2)), Segment(7, 10))
    assert packed.inputs["segments"].parts == segments
    values = torch.arange(10.0)[None]
    assert packed.spread(values).tolist() == [[2.0, 3.0], [5.0, 0.0], [8.0, 0.0]]


def test_kernels_get_each_segments_keys_behind_those_of_its_prompt() -> None:
    parts = (Segment(0, 2), Segment(2, 5, (0, 2)), Segment(5, 7, (0, 2)), Segment(7, 10))
    inputs = _KernelInputs.of(parts, torch.device("cpu"))
    assert inputs.ends_q.tolist() == [0, 2, 5, 7, 10]
    assert inputs.ends_k.tolist() == [0, 2, 7, 11, 14]
    assert inputs.keys is not None
    assert inputs.keys.tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 8, 9]
    assert (inputs.longest_q, inputs.longest_k) == (3, 5)
    assert _KernelInputs.of((Segment(0, 2), Segment(2, 5)), torch.device("cpu")).keys is None


def test_rows_without_completions_are_left_out_and_a_token_stays_if_all_are() -> None:
    ids, mask, width = rows((0, 4, 3), (0, 4, 0), (1, 2, 1))
    packed = pack(ids, mask, width, [(0, 1), (2,)])
    assert packed.tokens == 4 + 3 + 2 + 1
    mask[:, -width:] = 0
    empty = pack(ids, mask, width, [(0,), (1,), (2,)])
    assert empty.tokens == 1
    assert empty.spread(torch.ones(1, 1)).tolist() == [[0.0] * 3] * 3


MODELS = {
    "qwen2": {},
    "grouped queries": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "sliding window": {"kind": "mistral", "sliding_window": 7},
    "alternating windows": {"kind": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "llama": {"kind": "llama"},
    "experts": {"kind": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
}


def log_probs(model: Any, ids: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :-width] = IGNORED
    return model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs[:, -width:]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("families", [[(0,), (1,), (2,), (3,), (4,)], [(0, 1, 2), (3, 4)]], ids=["alone", "shared"])
def test_packed_rows_have_the_log_probs_and_gradients_of_padded_ones(
    tmp_path: Path, name: str, families: list[tuple[int, ...]]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path, **MODELS[name]), dtype=torch.float32)
    add_fused_lm_head(model)
    register()
    ids, mask, width = rows((0, 12, 20), (0, 12, 3), (0, 12, 9), (1, 5, 14), (1, 5, 1))
    weights = torch.randn((5, width), generator=torch.Generator().manual_seed(1))
    expected, gradients = with_gradients(model, lambda: log_probs(model, ids, mask, width), weights)

    packed = pack(ids, mask, width, families)
    found, ours = with_gradients(
        model, lambda: packed.spread(model(**packed.inputs, fused_lm_head=True).log_probs), weights
    )
    assert packed.tokens < ids.numel()
    assert torch.allclose(found, expected, atol=2e-5)
    largest = max(gradient.abs().max() for gradient in gradients)
    assert max((a - b).abs().max() for a, b in zip(ours, gradients, strict=True)) < 2e-5 * largest


def with_gradients(model: Any, forward: Any, weights: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    found = forward()
    (found * weights).sum().backward()
    return found.detach(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_what_is_not_packed_goes_to_the_attention_that_was_there() -> None:
    register()
    register()
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    query, key, value = torch.randn(3, 1, 2, 6, 8).unbind()
    module = torch.nn.Module()
    ours, _ = attention(module, query, key, value, None, is_causal=True)
    theirs, _ = attention._original(module, query, key, value, None, is_causal=True)
    assert torch.equal(ours, theirs)
    assert not hasattr(attention._original, "_original"), "registered twice"


def test_what_packed_attention_has_not_is_refused_by_name() -> None:
    register()
    segments = Segments((Segment(0, 6),))
    query = torch.randn(1, 2, 6, 8)
    with pytest.raises(NotImplementedError, match="packed attention has no softcap"):
        ALL_ATTENTION_FUNCTIONS["sdpa"](torch.nn.Module(), query, query, query, None, segments=segments, softcap=30.0)
