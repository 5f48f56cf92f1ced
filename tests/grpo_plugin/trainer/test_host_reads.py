"""How often the host reads values from the device: on a GPU each read waits for all that was launched before it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_plugin import RemoteGRPOTrainer
from tests.support import scoring
from tests.support.training import train_skewed

pytestmark = pytest.mark.slow

# What the trial at start-up reads is read once a run.
TRIAL = {"trial.py", "trial_rows.py", "embedding_gradient.py", "masks.py", "varlen.py"}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of our files read a tensor's values. A CPU's tensors do not tell that a device's would be read."""
    found: Counter[str] = Counter()

    def counted(name: str) -> None:
        inner = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            path = Path(sys._getframe(1).f_code.co_filename)
            if path.parent.parent.name == "grpo_plugin":
                found[path.name] += 1
            return inner(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)

    for name in ("cpu", "item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
        counted(name)
    return found


def test_a_step_reads_twice_from_the_device_however_many_micro_batches_it_has(
    tiny_model: str, tmp_path: Path, reads: Counter[str]
) -> None:
    steps, found, forwards = 4, [], []
    for budget in (None, 40):
        reads.clear()
        options = {"max_steps": steps, "max_tokens_per_micro_batch": budget}
        trainer = train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model, reward=scoring.vowels, **options)
        found.append(dict(reads))
        forwards.append(trainer.counting.forwards)
    assert forwards[1] > 2 * forwards[0]
    assert found[0] == found[1]
    in_the_trial = found[0].pop("forward.py")  # lengths of the trial's rows, which no plan knows
    assert in_the_trial < 8
    in_a_step = {name: count for name, count in found[0].items() if name not in TRIAL | {"group_signal.py"}}
    assert sum(in_a_step.values()) <= 2 * steps, in_a_step
