"""What the host waits for: each read from a device waits for all that was launched before it.

A CPU's tensors do not tell that a device's would be read, so that calls of the methods that give the host a value are
counted, each for the file of ours that made the call. `numpy` is not one of them: a device's tensor does not have it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_plugin import RemoteGRPOTrainer
from grpo_plugin.batching.exchange import HeldRows
from grpo_plugin.batching.prepared import Prepared
from tests.support import scoring
from tests.support.training import train_skewed

pytestmark = pytest.mark.slow

# The trial at start-up, once a run, and the function of `forward.py` that only it uses.
TRIAL = {"trial.py", "trial_rows.py", "embedding_gradient.py", "masks.py", "varlen.py", "read_rows"}

READING = ("cpu", "item", "tolist", "__bool__", "__int__", "__float__", "__index__")


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """How often each of our files waits for the device inside, the trial left out."""
    found: Counter[str] = Counter()
    patch = pytest.MonkeyPatch()

    def counted(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            code = sys._getframe(1).f_code
            path = Path(code.co_filename)
            if path.parent.parent.name == "grpo_plugin" and not TRIAL.intersection((path.name, code.co_name)):
                found[path.name] += 1
            return inner(*args, **kwargs)

        patch.setattr(owner, name, call)

    for name in READING:
        counted(torch.Tensor, name)
    try:
        yield found
    finally:
        patch.undo()


# Two optimizer steps a generation, each taken twice, with old and reference log-probabilities.
EVERYTHING = {"num_iterations": 2, "steps_per_generation": 8, "max_steps": 8, "beta": 0.1}
STEPS, GENERATIONS = 8, 2
# As often as can be: a generation a step, and log-probabilities for it.
A_GENERATION_A_STEP = {"steps_per_generation": 4, "max_steps": 4, "beta": 0.1}
LAYOUTS = {
    "shared": {},
    "packed": {"shared_prefix": False},
    "padded": {"padding_free": False},
    "TRL's micro-batches, trimmed": {"loss_type": "bnpo"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_host_waits_once_a_plan_however_many_micro_batches_there_are(
    tiny_model: str, tmp_path: Path, layout: str
) -> None:
    found, forwards = [], []
    for budget in (None, 40):
        changes = {**EVERYTHING, **LAYOUTS[layout], "max_tokens_per_micro_batch": budget}
        with waits() as counted:
            trainer = train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model, reward=scoring.vowels, **changes)
        found.append(dict(counted))
        forwards.append(trainer.counting.forwards)
    assert forwards[1] > 2 * forwards[0] or layout == "TRL's micro-batches, trimmed"
    assert found[0] == found[1]
    # A plan of the log-probabilities, and one of each of the two optimizer steps.
    assert found[0] == {"table.py": 3 * GENERATIONS}
    assert sum(found[0].values()) <= 2 * STEPS


def test_the_host_waits_twice_a_step_where_each_has_a_generation_and_a_reference(
    tiny_model: str, tmp_path: Path
) -> None:
    with waits() as counted:
        train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model, reward=scoring.vowels, **A_GENERATION_A_STEP)
    assert dict(counted) == {"table.py": 2 * A_GENERATION_A_STEP["max_steps"]}


def test_the_next_micro_batch_is_made_once_this_one_is_launched_and_before_its_call_ends(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def told(owner: Any, name: str, before: str = "", after: str = "") -> None:
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            events.extend([before] if before else [])
            result = inner(*args, **kwargs)
            events.extend([after] if after else [])
            return result

        monkeypatch.setattr(owner, name, call)

    told(HeldRows, "select", before="made")
    told(RemoteGRPOTrainer, "_compute_loss", before="forward")
    told(RemoteGRPOTrainer, "training_step", after="call ends")
    told(torch.Tensor, "backward", after="launched")
    options = {"max_steps": 1, "max_tokens_per_micro_batch": 40, "per_device_train_batch_size": 8}
    train_skewed(
        RemoteGRPOTrainer, tmp_path, tiny_model, reward=scoring.vowels, gradient_accumulation_steps=2, **options
    )
    one = ["forward", "launched", "made"]
    first, second = (" ".join(part.split()) for part in " ".join(events).split("call ends")[:2])
    assert first.count("forward") > 1
    assert first.split() == ["made", *one * first.count("forward")]
    assert second.split() == [*one * (second.count("forward") - 1), "forward", "launched"]


def test_a_prepared_value_is_made_once_and_only_when_it_is_asked_for() -> None:
    made: list[int] = []

    def make(number: int) -> str:
        made.append(number)
        return f"batch {number}"

    values = Prepared(3, make)
    assert (len(values), made) == (3, [])
    assert (values[1], values[1], made) == ("batch 1", "batch 1", [1])
    values.prepare(3)
    assert (list(values), made) == (["batch 0", "batch 1", "batch 2"], [1, 0, 2])
