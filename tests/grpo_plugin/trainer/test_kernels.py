"""Fused kernels and compiled layers under token batches: the trial runs them, and gradients stay TRL's."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.logging import MultiProcessAdapter
from trl import GRPOTrainer

from grpo_plugin import RemoteGRPOTrainer
from grpo_plugin.batching.kernels import unused_kernels
from grpo_plugin.batching.plan import PackedLayout
from tests.support import liger
from tests.support.training import largest_difference, train_skewed

# TRL says that use_liger_kernel is deprecated, and Dynamo looks at what it traces in ways that warn.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.slow
def test_packed_rows_with_liger_kernels_learn_what_stock_trl_learns_with_them(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liger.install(monkeypatch, liger.root_mean_square)
    stock = train_skewed(GRPOTrainer, tmp_path, tiny_model, use_liger_kernel=True)
    ours = train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model, use_liger_kernel=True)
    assert isinstance(ours._layout, PackedLayout)
    for trainer in (stock, ours):
        assert trainer.model.model.norm.forward.__func__ is liger.root_mean_square
    assert largest_difference(stock, ours) < 1e-5


@pytest.mark.slow
def test_rows_are_not_packed_through_a_kernel_that_mixes_them(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    liger.install(monkeypatch, liger.over_the_sequence)
    with caplog.at_level(logging.WARNING):
        ours = train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model, use_liger_kernel=True, max_steps=1)
    assert ours._layout is None
    assert "rows keep TRL's padding and micro-batches, since for this model" in caplog.text


def advice(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], device: str = "cuda", **used: Any
) -> str | None:
    found = {name: object() for name in installed}
    monkeypatch.setattr("importlib.util.find_spec", found.get)
    args = SimpleNamespace(use_liger_kernel=used.get("liger", False))
    return unused_kernels(args, SimpleNamespace(use_kernels=used.get("hub", False)), torch.device(device))


def test_kernels_that_are_installed_and_not_used_are_recommended_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "use_liger_kernel=True" in str(advice(monkeypatch, ("liger_kernel",)))
    assert '{"use_kernels": True}' in str(advice(monkeypatch, ("liger_kernel", "kernels")))
    for nothing in (
        advice(monkeypatch, ()),
        advice(monkeypatch, ("liger_kernel",), device="cpu"),
        advice(monkeypatch, ("liger_kernel",), liger=True),
        advice(monkeypatch, ("kernels",), hub=True),
    ):
        assert nothing is None


@pytest.mark.slow
def test_a_compiled_model_is_compiled_for_the_first_steps_and_not_again(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MultiProcessAdapter.warning_once.cache_clear()
    torch._dynamo.reset()
    frames: list[int] = []

    inner = RemoteGRPOTrainer.training_step

    def counting(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        loss = inner(trainer, *args, **kwargs)
        if trainer.accelerator.sync_gradients:
            frames.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return loss

    monkeypatch.setattr(RemoteGRPOTrainer, "training_step", counting)
    torch._dynamo.utils.counters.clear()
    steps = {"max_steps": 20, "torch_compile": True, "torch_compile_backend": "eager"}
    compiled = train_skewed(RemoteGRPOTrainer, tmp_path / "compiled", tiny_model, **steps)
    assert isinstance(compiled._layout, PackedLayout)
    assert len(frames) == 20
    assert 0 < frames[4] == frames[-1]
