"""Padded rows have few widths where a device gains from shapes that come back, and gradients stay TRL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl import GRPOTrainer

from grpo_plugin import RemoteGRPOTrainer
from grpo_plugin.batching.rows import few_widths
from tests.support.training import largest_difference, train_skewed


@pytest.mark.parametrize(("widest", "multiple"), [(1, 8), (128, 8), (129, 16), (1024, 64), (1064, 128), (32_000, 2048)])
def test_no_more_than_16_widths_and_none_below_8(widest: int, multiple: int) -> None:
    assert few_widths(widest) == multiple
    assert -(-widest // multiple) <= 16


class Noting(RemoteGRPOTrainer):
    """Notes the widths of its micro-batches, as on a CPU."""

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self.widths = [*getattr(self, "widths", ()), inputs["completion_ids"].shape[1]]
        return super()._compute_loss(model, inputs)


class OnAGpu(Noting):
    """The same as if the device were a GPU."""

    _wants_few_shapes = True


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"num_iterations": 2}, {"loss_type": "bnpo"}], ids=["regrouped", "trimmed"])
def test_widths_are_few_and_gradients_are_trls(tiny_model: str, tmp_path: Path, changes: dict[str, Any]) -> None:
    options = {"padding_free": False, **changes}
    stock = train_skewed(GRPOTrainer, tmp_path, tiny_model, **changes)
    plain = train_skewed(Noting, tmp_path, tiny_model, **options)
    rounded = train_skewed(OnAGpu, tmp_path, tiny_model, **options)
    assert all(width % 8 == 0 for width in rounded.widths)
    assert len(set(rounded.widths)) < len(set(plain.widths))
    assert largest_difference(stock, rounded) < 1e-5
