"""Packed rows: the order of tokens, what each one sees, and the same numbers as padded rows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from grpo_plugin.batching.forward import PACKING, packed_forward, packing_indices, read_rows, with_packing
from grpo_plugin.batching.packing import IGNORED, Packed, PackingIndex, to_device
from grpo_plugin.batching.plan import PackedLayout, PaddedLayout
from packed_attention.attention import register
from packed_attention.segments import round_length
from tests.benchmarks.packing import make_rows, tensors
from tests.support.builders import save_tiny_model

CPU = torch.device("cpu")


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


def pack(
    ids: torch.Tensor, mask: torch.Tensor, width: int, families: Sequence[Sequence[int]], few_lengths: bool = False
) -> Packed:
    index = PackingIndex.of(read_rows(ids, mask, width), families, ids.shape[1] - width, width, few_lengths)
    return to_device([index], CPU)[0].pack(ids)


p1, p2, p3, a1, a2, b1, q1, q2, c1 = range(11, 20)
PICTURE = (
    torch.tensor([[p1, p2, p3, a1, a2], [p1, p2, p3, b1, 0], [0, q1, q2, c1, 0]]),
    torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 0]]),
    2,
)


def test_the_layout_is_that_of_the_picture() -> None:
    packed = pack(*PICTURE, [(0, 1), (2,)])
    assert packed.inputs["input_ids"].tolist() == [[p1, p2, p3, a1, a2, p3, b1, q1, q2, c1]]
    assert packed.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 2]]
    n = IGNORED
    assert packed.inputs["shift_labels"].tolist() == [[n, n, a1, a2, n, b1, n, n, c1, n]]
    assert (packed.segments.lengths, packed.segments.before) == ([2, 3, 2, 3], [-1, 0, 0, -1])
    values = torch.arange(10.0)[None]
    assert packed.spread(values).tolist() == [[2.0, 3.0], [5.0, 0.0], [8.0, 0.0]]


def test_kernels_get_each_segments_keys_behind_those_of_its_prompt() -> None:
    segments = pack(*PICTURE, [(0, 1), (2,)]).segments
    assert segments.ends_q.tolist() == [0, 2, 5, 7, 10]
    assert segments.ends_k.tolist() == [0, 2, 7, 11, 14]
    assert segments.keys is not None
    assert segments.keys.tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 8, 9]
    assert (segments.longest_q, segments.longest_k) == (3, 5)
    assert pack(*PICTURE, [(0,), (1,), (2,)]).segments.keys is None


def test_rows_without_completions_are_left_out_and_a_token_stays_if_all_are() -> None:
    ids, mask, width = rows((0, 4, 3), (0, 4, 0), (1, 2, 1))
    assert pack(ids, mask, width, [(0, 1), (2,)]).tokens == 4 + 3 + 2 + 1
    mask[:, -width:] = 0
    empty = pack(ids, mask, width, [(0,), (1,), (2,)])
    assert empty.tokens == 1
    assert empty.spread(torch.ones(1, 1)).tolist() == [[0.0] * 3] * 3


def test_lengths_come_back_and_few_tokens_are_added() -> None:
    assert [round_length(tokens) for tokens in (1, 128, 129, 1000, 1025, 75_001)] == [1, 128, 130, 1000, 1040, 75_776]
    lengths = {round_length(tokens) for tokens in range(8193, 16385)}
    assert len(lengths) == 64
    assert all(0 <= round_length(tokens) - tokens <= tokens / 64 for tokens in range(1, 20_000))


def test_a_dead_segment_fills_the_sequence_and_no_row_sees_it() -> None:
    ids, mask, width = rows((0, 70, 30), (0, 70, 29), (1, 9, 6))
    exact, filled = (pack(ids, mask, width, [(0, 1), (2,)], few_lengths=few) for few in (False, True))
    assert (exact.tokens, filled.tokens) == (69 + 31 + 30 + 15, 146)
    assert filled.segments.lengths == [*exact.segments.lengths, 1]
    assert filled.segments.before[-1] == -1
    assert filled.segments.keys is not None
    assert filled.segments.keys.tolist()[-1] == 145
    assert filled.inputs["shift_labels"][0, -1] == IGNORED


def test_lengths_and_equal_prompts_are_read_in_one_copy_of_any_number_of_rows() -> None:
    ids, mask, width = rows((0, 4, 3), (1, 4, 0), (0, 4, 1), (1, 2, 2), (0, 3, 2))
    read = read_rows(ids, mask, width)
    assert read.prompt_tokens_R.tolist() == [4, 4, 4, 2, 3]
    assert read.completion_tokens_R.tolist() == [3, 0, 1, 2, 2]
    first, second, third, fourth, fifth = read.prompt_R.tolist()
    assert first == third
    assert len({first, second, fourth, fifth}) == 4


def test_a_row_with_padding_between_its_tokens_is_an_error_that_names_it() -> None:
    ids, mask, width = rows((0, 4, 3), (1, 4, 3))
    mask[1, -2] = 0
    with pytest.raises(ValueError, match="row 1 has padding between its tokens"):
        read_rows(ids, mask, width)


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
    ids, mask, width = rows((0, 62, 50), (0, 62, 33), (0, 62, 9), (1, 5, 14), (1, 5, 1))
    weights = torch.randn((5, width), generator=torch.Generator().manual_seed(1))
    expected, gradients = with_gradients(model, lambda: log_probs(model, ids, mask, width), weights)
    largest = max(gradient.abs().max() for gradient in gradients)
    for few_lengths in (False, True):
        packed = pack(ids, mask, width, families, few_lengths)
        found, ours = with_gradients(model, lambda packed=packed: spread_log_probs(model, packed), weights)
        assert packed.tokens < ids.numel()
        assert torch.allclose(found, expected, atol=2e-5)
        assert max((a - b).abs().max() for a, b in zip(ours, gradients, strict=True)) < 2e-5 * largest


def spread_log_probs(model: Any, packed: Packed) -> torch.Tensor:
    return packed.spread(model(**packed.inputs, fused_lm_head=True).log_probs)


def with_gradients(model: Any, forward: Any, weights: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    found = forward()
    (found * weights).sum().backward()
    return found.detach(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


# ------------------------------------------------------------------------------------------ what the host waits for


def test_128_rows_of_75_000_tokens_are_packed_in_5_milliseconds() -> None:
    known = make_rows(rows=128, tokens=75_000, group=8)
    ids, _, prompt, width = tensors(known, CPU)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        (index,) = packing_indices([(known, prompt, width)], PackedLayout(0.001, shares=True), CPU)
        index.pack(ids)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.005  # 0.7 ms on one core that does nothing else


META = torch.device("meta")  # whatever reads a value from it raises


class Operators(TorchDispatchMode):
    """Writes down the operators that run, and where copies go."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.copies: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.name())
        if function.name() == "aten::_to_copy" and "device" in (kwargs or {}):
            self.copies.append(str(kwargs["device"]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("micro_batches", [1, 8])
def test_packing_from_known_lengths_is_one_copy_to_the_device_and_reads_nothing_from_it(micro_batches: int) -> None:
    ids, mask, width = rows((0, 24, 12), (0, 24, 5), (1, 9, 7))
    known = (read_rows(ids, mask, width), 24, width)
    ids = ids.to(META)
    with Operators() as operators:
        indices = packing_indices([known] * micro_batches, PackedLayout(0.01, shares=True), META)
    assert operators.copies == ["meta"]
    for index in indices:
        packed = index.pack(ids)
        assert packed.spread(torch.zeros((1, packed.tokens), device=META)).shape == (3, width)


def test_micro_batches_of_a_plan_carry_where_their_tokens_go_and_a_filler_is_a_token() -> None:
    ids, mask, width = rows((0, 24, 12), (0, 24, 5), (1, 9, 7))
    layout = PackedLayout(0.01, shares=True)
    fields = {"prompt_ids": ids[:, :24], "completion_ids": ids[:, 24:]}
    parts = [
        {name: value[[2]] for name, value in fields.items()},
        {name: value[[1, 0]] for name, value in fields.items()},
        {"prompt_ids": ids[:1, :1], "completion_ids": ids[:1, :2]},
    ]
    made = with_packing(parts, [(2,), (1, 0), ()], read_rows(ids, mask, width), layout)
    packed = [part[PACKING].pack(torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)) for part in made]
    expected = [pack(ids[[2]], mask[[2]], width, [(0,)]), pack(ids[[1, 0]], mask[[1, 0]], width, [(0, 1)])]
    for ours, theirs in zip(packed[:2], expected, strict=True):
        for name in ("input_ids", "position_ids", "shift_labels"):
            assert torch.equal(ours.inputs[name], theirs.inputs[name])
    assert packed[2].inputs["input_ids"].tolist() == [[int(ids[0, 0])]]
    assert with_packing(parts, [(2,), (1, 0), ()], read_rows(ids, mask, width), PaddedLayout(0.01)) == parts


def test_a_packed_forward_without_known_lengths_reads_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask, width = rows((0, 24, 12), (0, 24, 5), (1, 9, 7))
    reads: list[Any] = []
    read = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: reads.append(tensor.shape) or read(tensor))

    def model(**inputs: Any) -> SimpleNamespace:
        assert inputs["input_ids"].shape == (1, 23 + 13 + 6 + 16)
        return SimpleNamespace(log_probs=torch.zeros(inputs["input_ids"].shape), entropy=None)

    with Operators() as operators:
        packed_forward(model, ids, mask, width, PackedLayout(0.01, shares=True), contextlib.nullcontext)
    assert reads == [(4, 3)]
    assert not {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}.intersection(operators.names)
