"""Packed rows through a compiled model: micro-batches of different lengths are not compiled again and again."""

from __future__ import annotations

import contextlib
import logging
import random

import pytest
import torch
from accelerate import PartialState
from accelerate.logging import MultiProcessAdapter
from torch._dynamo.testing import CompileCounterWithBackend

from grpo_plugin.batching.forward import packed_forward
from grpo_plugin.batching.plan import PackedLayout
from grpo_plugin.batching.trial_rows import Lengths, TrialRows
from packed_attention.attention import register
from tests.support.models import make_model

# Dynamo looks at what it traces in ways that warn.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_twenty_steps_of_different_lengths_are_compiled_once_and_once_more_for_any_length(
    caplog: pytest.LogCaptureFixture,
) -> None:
    PartialState(cpu=True)
    MultiProcessAdapter.warning_once.cache_clear()
    register()
    torch._dynamo.reset()
    model = make_model("llama")
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter)
    chance = random.Random(0)
    graphs, tokens = [], set()
    for _ in range(20):
        lengths = [Lengths(chance.randrange(3), 24, chance.randrange(1, 30)) for _ in range(chance.randrange(3, 9))]
        rows = TrialRows.make(lengths, 259, (), "cpu")
        tokens.add(int(rows.mask.sum()))
        layout = PackedLayout(0.01, shares=bool(chance.randrange(2)))
        inputs = (rows.ids, rows.mask, rows.width, layout, contextlib.nullcontext)
        with caplog.at_level(logging.WARNING):
            found, _ = packed_forward(compiled, *inputs)
        found.sum().backward()
        expected, _ = packed_forward(model, *inputs)
        assert torch.allclose(found, expected, atol=1e-5)
        graphs.append(counter.frame_count)
    assert len(tokens) > 15
    assert graphs[0] > 0
    assert graphs[1] <= 2 * graphs[0]
    assert graphs[2:] == [graphs[1]] * 18
    assert caplog.text.count("attention of packed rows is not compiled") == 1
