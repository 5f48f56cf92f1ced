"""Packed attention: what it refuses, and torch's kernel of variable length under each of its signatures."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from grpo_plugin.batching.packing import PackingIndex, to_device
from grpo_plugin.batching.plan import Rows
from packed_attention import attention
from packed_attention.attention import attend_by_segment, register
from packed_attention.segments import Segments
from packed_attention.varlen import VarlenKernel, select_keys
from tests.support.varlen import SIGNATURES, attend

CPU = torch.device("cpu")


def segments_of(*families: list[tuple[int, int]]) -> Segments:
    """Segments of families of (prompt tokens, completion tokens)."""
    lengths = torch.tensor([row for family in families for row in family]).numpy()
    numbers = iter(range(len(lengths)))
    members = [[next(numbers) for _ in family] for family in families]
    rows = Rows(lengths[:, 0], lengths[:, 1], lengths[:, 0], lengths[:, 0])
    index = PackingIndex.of(rows, members, int(lengths[:, 0].max()), int(lengths[:, 1].max()))
    on_device = to_device([index], CPU)[0]
    return on_device.pack(
        torch.zeros((len(lengths), index.shape[1] + int(lengths[:, 0].max())), dtype=torch.int64)
    ).segments


SHARED = segments_of([(9, 12), (9, 3), (9, 7)], [(5, 8)])
ALONE = segments_of([(9, 12)], [(4, 3)], [(5, 8)])


def tensors(segments: Segments, heads: int, key_heads: int, size: int, value_size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, size), (key_heads, size), (key_heads, value_size)]
    return [
        torch.randn((1, count, segments.tokens, width), generator=generator).requires_grad_() for count, width in shapes
    ]


@pytest.fixture(autouse=True)
def registered() -> None:
    register()


# --------------------------------------------------------------------------------------------------------- signatures


@pytest.mark.parametrize("version", SIGNATURES)
@pytest.mark.parametrize("segments", [SHARED, ALONE], ids=["shared", "alone"])
@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "value_size", "scaling", "window"),
    [
        (2, 2, 8, 8, None, None),
        (4, 2, 8, 8, 0.3, None),
        (4, 1, 12, 8, None, None),  # head sizes of DeepSeek's attention differ; 12 is no multiple of 8
        (4, 2, 8, 8, 0.3, 4),
    ],
    ids=["plain", "grouped, scaled", "head sizes", "window"],
)
def test_every_torch_with_a_kernel_packs(
    version: str,
    segments: Segments,
    heads: int,
    key_heads: int,
    size: int,
    value_size: int,
    scaling: float | None,
    window: int | None,
) -> None:
    kernel = VarlenKernel.of(SIGNATURES[version])
    inputs = tensors(segments, heads, key_heads, size, value_size)
    if window is not None and version == "2.10":
        with pytest.raises(NotImplementedError, match=r"no sliding window .* 2.11 and later have"):
            kernel.attend(*inputs, segments, scaling, window)
        return
    found = kernel.attend(*inputs, segments, scaling, window)
    expected = attend_by_segment(*inputs, segments, scaling=scaling, sliding_window=window)
    assert found.shape == (1, segments.tokens, heads, value_size)
    assert torch.allclose(found, expected, atol=1e-5)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((output * weights).sum(), inputs) for output in (found, expected)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["alike", "grouped", "one key head"])
@pytest.mark.parametrize("torch_version", ["2.9", "2.10"])
def test_completions_that_look_at_their_prompt_together_see_what_each_of_them_sees(
    heads: tuple[int, int], torch_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = segments_of([(9, 12), (9, 3), (9, 7)], [(5, 8)], [(40, 1), (40, 90)])
    inputs = tensors(segments, *heads, 8, 8)

    def attended() -> tuple[torch.Tensor, ...]:
        output = attend_by_segment(*inputs, segments, scaling=0.3)
        return output, *torch.autograd.grad(output.square().sum(), inputs)

    monkeypatch.setattr(torch, "__version__", torch_version)
    together = attended()
    monkeypatch.setattr(attention, "can_attend", lambda *_: False)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, attended(), strict=True))


@pytest.mark.parametrize("version", SIGNATURES)
def test_an_encoder_sees_all_of_its_own_segment_and_nothing_else(version: str) -> None:
    segments = Segments(ALONE.lengths, ALONE.before, ALONE.ends_q, ALONE.ends_k, None, any_direction=True)
    inputs = tensors(segments, 4, 2, 8, 8)
    q, k, v = (x.split(segments.lengths, dim=2) for x in inputs)
    alone = [
        torch.nn.functional.scaled_dot_product_attention(*one, scale=0.3, enable_gqa=True)
        for one in zip(q, k, v, strict=True)
    ]
    expected = torch.cat(alone, dim=2).transpose(1, 2)
    by_segment = attend_by_segment(*inputs, segments, scaling=0.3, causal=False)
    by_kernel = VarlenKernel.of(SIGNATURES[version]).attend(*inputs, segments, 0.3, None, causal=False)
    for found in (by_segment, by_kernel):
        assert torch.allclose(found, expected, atol=1e-5)
    with pytest.raises(NotImplementedError, match="no sliding window that looks in both directions"):
        attend_by_segment(*inputs, segments, sliding_window=4, causal=False)


def test_the_installed_kernel_takes_what_is_known_of_it() -> None:
    installed = VarlenKernel.installed()
    if installed is None:
        pytest.skip(f"torch {torch.__version__} has no kernel of variable length")
    minor = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    known = SIGNATURES.get(f"{minor[0]}.{minor[1]}", SIGNATURES["2.13"])
    used = {"is_causal", "scale", "window_size", "enable_gqa"}
    assert installed.takes & used == VarlenKernel.of(known).takes & used


@pytest.mark.parametrize("version", SIGNATURES)
def test_a_kernel_that_looks_at_the_right_tokens_has_no_problem(version: str) -> None:
    kernel = VarlenKernel.of(SIGNATURES[version])
    assert kernel.problem(CPU, windows=False) is None
    if version != "2.10":
        assert kernel.problem(CPU, windows=True) is None


def first_on_first(q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, *_: Any, is_causal: bool = False) -> Any:
    """Aligns the first query with the first key, as scaled_dot_product_attention does."""
    pieces = []
    for number in range(len(ends_q) - 1):
        one = [
            x[ends[number] : ends[number + 1]].transpose(0, 1) for x, ends in ((q, ends_q), (k, ends_k), (v, ends_k))
        ]
        pieces.append(torch.nn.functional.scaled_dot_product_attention(*one, is_causal=True).transpose(0, 1))
    return torch.cat(pieces)


def one_too_wide(
    q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, *_: Any, scale: Any = None, window_size: Any = None
) -> Any:
    wide = (window_size[0] + 1, 0) if window_size[0] >= 0 else window_size
    return attend(q, k, v, ends_q, ends_k, wide, scale)


@pytest.mark.parametrize("function", [first_on_first, one_too_wide])
def test_a_kernel_that_looks_at_other_tokens_is_found(function: Callable[..., Any]) -> None:
    assert "looks at other tokens" in str(VarlenKernel.of(function).problem(CPU, windows=function is one_too_wide))


def test_gradients_of_shared_keys_are_added_up_in_float32() -> None:
    keys = torch.arange(4).repeat(64)
    values = torch.zeros((4, 1, 8), dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn((256, 1, 8), generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = gradient.double().view(64, 4, 1, 8).sum(0)
    (found,) = torch.autograd.grad(select_keys(values, keys), values, gradient)
    assert (found - exact).abs().max() <= 2**-8 * exact.abs().max()  # one rounding to bfloat16


# ------------------------------------------------------------------------------------------------------------ refusals


def call(name: str = "sdpa", tokens: int = 6, module: Any = None, **options: Any) -> Any:
    query = torch.randn(1, 2, tokens, 8)
    module = torch.nn.Module() if module is None else module
    return ALL_ATTENTION_FUNCTIONS[name](module, query, query, query, None, **options)


def test_what_is_not_packed_goes_to_the_attention_that_was_there() -> None:
    register()
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    query, key, value = torch.randn(3, 1, 2, 6, 8).unbind()
    module = torch.nn.Module()
    ours, _ = attention(module, query, key, value, None, is_causal=True)
    theirs, _ = attention.original(module, query, key, value, None, is_causal=True)
    assert torch.equal(ours, theirs)
    assert not hasattr(attention.original, "original"), "registered twice"


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias", "cache", "head_mask", "something_new"])
def test_an_argument_that_packed_attention_would_ignore_is_refused_by_name(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"packed attention has no {name}"):
        call(segments=segments_of([(4, 2)]), **{name: torch.ones(2)})
    call(segments=segments_of([(4, 2)]), **{name: None}, position_ids=torch.arange(6), use_cache=False)


def test_a_layer_that_is_not_causal_is_refused() -> None:
    module = torch.nn.Module()
    module.is_causal = False
    for options in ({"module": module}, {"is_causal": False}):
        with pytest.raises(NotImplementedError, match="packed attention is causal, and this layer's is not"):
            call(segments=segments_of([(4, 2)]), **options)
        rows = segments_of([(4, 2)])
        in_any_direction = Segments(rows.lengths, rows.before, rows.ends_q, rows.ends_k, None, any_direction=True)
        output, _ = call(segments=in_any_direction, **options)
        assert output.shape == (1, 6, 2, 8)


def test_a_layer_with_other_tokens_than_the_packed_ones_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="takes one sequence of 6 tokens"):
        call(tokens=7, segments=segments_of([(4, 2)]))
