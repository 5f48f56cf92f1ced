"""The trial at start-up: which models are packed, which are refused and why, and that it leaves no trace."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import PartialState
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from grpo_plugin.batching.plan import PackedLayout, PaddedLayout
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.trial_rows import Lengths, TrialRows
from packed_attention.attention import AttentionCall, register
from packed_attention.masks import lost_in_packing
from packed_attention.varlen import VarlenKernel
from tests.packed_attention.test_attention import first_on_first, one_too_wide
from tests.support.models import CARRY_STATE, PACKED, WINDOW_IN_MASK, layout_of, make_model
from tests.support.varlen import torch_2_10, torch_2_12

PRECISIONS = ["float32", "bfloat16", "autocast"]
FAST = {"llama", "gemma3_text", "mixtral", "lfm2"}


@pytest.fixture(autouse=True)
def state() -> None:
    PartialState(cpu=True)  # accelerate's loggers ask for it


def cases(models: dict[str, Any]) -> list[Any]:
    return [
        pytest.param(name, precision, marks=() if name in FAST and precision != "autocast" else pytest.mark.slow)
        for name in models
        for precision in PRECISIONS
    ]


# ---------------------------------------------------------------------------------------------- do rows stay apart?


@pytest.mark.parametrize(("kind", "precision"), cases(PACKED))
def test_models_whose_rows_stay_apart_are_packed_and_share_prompts(kind: str, precision: str) -> None:
    layout = layout_of(make_model(kind, **PACKED[kind]), precision)
    assert isinstance(layout, PackedLayout)
    assert layout.shares


@pytest.mark.parametrize("scale", [0.02, 0.2])
@pytest.mark.parametrize(("kind", "precision"), cases(CARRY_STATE))
def test_models_that_carry_state_along_the_sequence_are_not_packed(
    kind: str, precision: str, scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(kind, initializer_range=scale, **CARRY_STATE[kind])
    with caplog.at_level(logging.WARNING):
        assert not isinstance(layout_of(model, precision), PackedLayout)
    assert "for this model" in caplog.text


@pytest.mark.parametrize("vocabulary", [8, 30, 100])
def test_a_small_vocabulary_whose_rows_share_ids_changes_nothing(vocabulary: int) -> None:
    (leaks, options), *_ = CARRY_STATE.items()
    assert isinstance(layout_of(make_model("llama", **{**PACKED["llama"], "vocab_size": vocabulary})), PackedLayout)
    assert not isinstance(layout_of(make_model(leaks, **{**options, "vocab_size": vocabulary})), PackedLayout)


@pytest.mark.parametrize("scale", [0.02, 0.2])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["biogpt", "gpt2"])
def test_models_whose_positions_count_padding_keep_trls_padding(
    kind: str, precision: str, scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(
        kind, initializer_range=scale, **({"n_embd": 32, "n_layer": 2, "n_head": 2} if kind == "gpt2" else {})
    )
    with caplog.at_level(logging.WARNING):
        assert layout_of(model, precision) is None
    assert "log-probabilities depend on padding" in caplog.text


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_window_that_only_the_mask_tells_of_is_not_packed(precision: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert isinstance(layout_of(make_model("qwen2_moe", **WINDOW_IN_MASK), precision), PaddedLayout)
    assert "layer 0 has sliding_attention, which only its mask says" in caplog.text


@pytest.mark.parametrize("precision", PRECISIONS)
def test_such_a_window_is_found_in_the_mask_where_the_configuration_does_not_name_layers(
    precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("qwen2_moe", **WINDOW_IN_MASK)
    config = copy.deepcopy(model.config)
    config.layer_types = None
    with caplog.at_level(logging.WARNING):
        assert isinstance(layout_of(model, precision, config=config), PaddedLayout)
    assert "an attention mask says more than that rows are causal" in caplog.text


def test_a_window_too_long_to_try_has_to_reach_attention(caplog: pytest.LogCaptureFixture) -> None:
    far = {"sliding_window": 20_000, "max_position_embeddings": 32_768}
    assert isinstance(layout_of(make_model("mistral", **far)), PackedLayout)
    model = make_model("qwen2_moe", **{**WINDOW_IN_MASK, **far})
    config = copy.deepcopy(model.config)
    config.layer_types = None
    with caplog.at_level(logging.WARNING):
        assert isinstance(layout_of(model, config=config), PaddedLayout)
    assert "has a window of 20000 tokens, which no attention call receives" in caplog.text


def test_under_fsdp_no_gradient_is_asked_for() -> None:
    for kind, layout in (("llama", PackedLayout), ("lfm2", PaddedLayout)):
        model = make_model(kind, **{**PACKED, **CARRY_STATE}[kind])
        model.__class__ = type(f"FSDP{type(model).__name__}", (type(model),), {})
        hooked: list[Any] = []
        model.get_input_embeddings().register_forward_hook = hooked.append
        assert isinstance(layout_of(model, "bfloat16"), layout)
        assert hooked == []


def call(mask: torch.Tensor | None, queries: int, window: int | None = None) -> AttentionCall:
    return AttentionCall(torch.nn.Module(), mask, queries, window, 0.0, True, "original")


def test_masks_that_say_more_than_causality_and_window_are_found() -> None:
    causal = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    windowed = causal & ~torch.ones(6, 6, dtype=torch.bool).tril(-3)
    chunked = causal & (torch.arange(6)[:, None] // 3 == torch.arange(6)[None] // 3)
    additive = torch.zeros(1, 1, 6, 6).masked_fill(~causal, torch.finfo(torch.float32).min)
    config = make_model("llama").config
    for fine in (call(None, 6), call(causal, 6), call(windowed, 6, window=3), call(additive, 6)):
        assert lost_in_packing([fine], config) is None
    biased = additive - torch.arange(6.0)
    for lost in (call(windowed, 6), call(chunked, 6), call(causal, 6, window=3), call(biased, 6)):
        assert "an attention mask says more" in str(lost_in_packing([lost], config))


def test_one_rank_with_a_problem_makes_all_pad(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([True, True, True, False])  # padding twice, the model, then the first question about packed rows

    def gather(own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, own & next(answers, True)])

    with caplog.at_level(logging.WARNING):
        layout = layout_of(make_model("llama"), ranks=Ranks(0, 2, gather), shares=False)
    assert isinstance(layout, PaddedLayout)
    assert "another rank found a problem" in caplog.text


def test_an_error_in_the_backward_of_packed_rows_is_a_reason_and_not_a_crash(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("llama")

    def refuse(module: Any, args: Any, output: Any) -> Any:
        packed = output[0].shape[0] == 1 and output[0].shape[1] > 40
        if packed and output[0].requires_grad:
            output[0].register_hook(lambda gradient: 1 / 0)

    model.model.layers[0].self_attn.register_forward_hook(refuse)
    with caplog.at_level(logging.WARNING):
        assert isinstance(layout_of(model), PaddedLayout)
    assert "packed rows raise ZeroDivisionError" in caplog.text


# ----------------------------------------------------------------------------------------- kernels of variable length


@pytest.fixture
def kernel() -> Iterator[Any]:
    """Replaces torch's kernel, on the CPU."""
    register()
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    before = attention.kernel
    yield lambda function: register(VarlenKernel.of(function, devices=("cpu",)))
    attention.kernel = before


def test_a_kernel_of_variable_length_packs(kernel: Any) -> None:
    kernel(torch_2_12)
    assert isinstance(layout_of(make_model("llama", num_attention_heads=4)), PackedLayout)
    assert isinstance(layout_of(make_model("mistral", sliding_window=9)), PackedLayout)
    kernel(torch_2_10)
    assert isinstance(layout_of(make_model("llama", num_attention_heads=4)), PackedLayout)


def test_a_kernel_without_windows_does_not_pack_models_with_windows(
    kernel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kernel(torch_2_10)
    with caplog.at_level(logging.WARNING):
        assert isinstance(layout_of(make_model("mistral", sliding_window=9)), PaddedLayout)
    assert "has no sliding window in its kernel of variable length" in caplog.text


def test_attention_dropout_which_kernels_have_not_keeps_rows_padded(
    kernel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("llama", attention_dropout=0.1)
    assert isinstance(layout_of(model), PackedLayout)  # a segment after another has dropout
    kernel(torch_2_12)
    with caplog.at_level(logging.WARNING):
        assert isinstance(layout_of(model), PaddedLayout)
    assert "attention has dropout, which kernels of variable length have not" in caplog.text


@pytest.mark.parametrize("function", [first_on_first, one_too_wide])
def test_a_kernel_that_looks_at_other_tokens_is_not_used(
    kernel: Any, function: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kernel(function)
    with caplog.at_level(logging.WARNING):
        layout = layout_of(make_model("mistral", sliding_window=9), "bfloat16")
    assert isinstance(layout, PaddedLayout)


# ------------------------------------------------------------------------------------------------- leaves no trace


def test_the_trial_leaves_modes_gradients_hooks_and_random_numbers_as_they_were() -> None:
    model = make_model("llama", attention_dropout=0.1)
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    gradients = [torch.ones_like(p) if number % 2 else None for number, p in enumerate(parameters)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    hooks = [len(module._forward_hooks) for module in model.modules()]
    random = torch.get_rng_state()
    assert isinstance(layout_of(model), PackedLayout)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is gradient for parameter, gradient in zip(parameters, gradients, strict=True))
    assert all((gradient == 1).all() for gradient in gradients if gradient is not None)
    assert [parameter.requires_grad for parameter in parameters] == [False] + [True] * (len(parameters) - 1)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------------------------ rows


def test_other_rows_tokens_all_change_and_those_of_the_kept_rows_do_not() -> None:
    rows = TrialRows.make((Lengths(0, 4, 3), Lengths(0, 4, 2), Lengths(1, 2, 2)), 259, {7}, "cpu")
    assert rows.ids[0, :4].tolist() == rows.ids[1, :4].tolist()
    tokens = rows.ids[rows.mask.bool()].tolist()
    assert len(set(tokens)) == 4 + 3 + 2 + 2 + 2
    assert 7 not in rows.ids
    changed = rows.changed((0,))
    kept = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0] * 7]).bool()  # the second row's prompt is the first's too
    assert torch.equal(rows.kept((0,)), kept)
    assert torch.equal(changed.ids == rows.ids, kept)
    assert sorted(rows.only_outside((0,)).tolist()) == sorted(set(rows.ids[~kept].tolist()))


def test_ids_that_kept_rows_hold_too_say_nothing_of_others() -> None:
    rows = TrialRows.make((Lengths(0, 4, 3), Lengths(1, 2, 2)), 10, (), "cpu")
    kept, others = (set(rows.ids[where].tolist()) for where in (rows.kept((0,)), ~rows.kept((0,))))
    assert kept & others
    assert set(rows.only_outside((0,)).tolist()) == others - kept
    assert not len(TrialRows.make((Lengths(0, 4, 3), Lengths(1, 2, 2)), 3, (), "cpu").only_outside((0,)))
