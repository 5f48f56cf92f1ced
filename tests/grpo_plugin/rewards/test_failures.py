"""Training through failed scores: what goes on, what is skipped, what stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from grpo_plugin import RemoteGRPOTrainer
from grpo_plugin.rewards import provenance
from grpo_plugin.rewards.failures import FailureRate
from reward_server.errors import ConfigError, ScoringFailedError
from tests.end_to_end.exactness import survivors
from tests.support.builders import make_dataset
from tests.support.servers import function
from tests.support.training import largest_difference, moved, remote

Serve = Callable[..., Any]


def test_the_rate_is_judged_over_a_full_window_and_sets_the_cause_once_it_is_too_high() -> None:
    rate = FailureRate(0.5, window=2)
    rate.add(4, 4, "all failed")
    assert rate.cause is None  # the window is not full
    rate.add(0, 4, None)
    assert rate.cause is None  # 4 of 8 is not beyond one half
    rate.add(3, 4, "three failed")
    assert rate.cause is None  # 3 of 8: the first step left the window
    rate.add(2, 4, "two failed")
    assert rate.cause is not None
    assert "62%" in rate.cause
    assert "two failed" in rate.cause


def test_what_is_scored_in_parts_is_judged_as_one_generation() -> None:
    rate = FailureRate(0.5, window=2)
    rate.add(0, 4, None, generation=0)
    rate.add(4, 4, "all failed", generation=1)
    rate.add(4, 4, "all failed again", generation=1)
    assert rate.cause is not None, "8 of 12"
    rate.add(0, 8, None, generation=1)
    assert rate.cause is None, "8 of 20"
    rate.add(8, 8, "all failed", generation=2)
    assert rate.cause is not None, "the first generation has left the window, and no part of the second"
    assert "67%" in rate.cause


@pytest.mark.oldest_trl
@pytest.mark.slow
def test_a_run_goes_on_through_failures_and_logs_them(tiny_model: str, tmp_path: Path, serve: Serve) -> None:
    args = remote(tmp_path, serve(function("flaky")), per_device_train_batch_size=16, max_failure_rate=1.0)
    trainer = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset())
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward/groups" in log]
    assert len(logs) == 5
    assert sum(log.get("reward/dropped", 0) for log in logs) > 0
    assert sum(log.get("reward/status/failed", 0) for log in logs) > 0
    assert all(log["reward/steps_without_update"] == 0 for log in logs)
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
    assert moved(trainer, tiny_model)


@pytest.mark.slow
def test_a_step_in_which_nothing_survives_updates_nothing_and_is_counted(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    # weight decay and AdamW's momentum would move the weights even on zero gradients
    args = remote(tmp_path, serve(function("raises")), weight_decay=0.5, beta=0.1)
    trainer = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset())
    trainer.train()
    assert not moved(trainer, tiny_model)
    assert [log["reward/steps_without_update"] for log in trainer.state.log_history[:5]] == [1, 2, 3, 4, 5]
    assert not trainer.optimizer.state


@pytest.mark.slow
def test_too_many_failures_write_a_checkpoint_and_stop_with_the_cause(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    args = remote(tmp_path, serve(function("raises")), failure_window=2, max_failure_rate=0.2)
    trainer = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset())
    with pytest.raises(ScoringFailedError, match=r"(?s)100% of the completions of the last 2 steps.*KeyError"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert (tmp_path / "ours" / "checkpoint-2" / "trainer_state.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["drop_sample", "drop_group", "drop_scorer"])
def test_a_policy_without_failures_changes_no_number(
    tiny_model: str, tmp_path: Path, serve: Serve, policy: str
) -> None:
    server = serve(function("vowels"), function("even_length"))
    trainers = []
    for name in (policy, "raise"):
        args = remote(tmp_path / name, server, on_reward_failure=name)
        trainers.append(RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset()))
        trainers[-1].train()
    assert largest_difference(*trainers) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [False, True])
def test_a_service_that_comes_back_with_another_configuration_is_refused_or_recorded(
    tiny_model: str, tmp_path: Path, serve: Serve, allowed: bool
) -> None:
    socket = f"unix:{tmp_path}/r.sock"
    server = serve(function("vowels"), listen=socket)
    args = remote(tmp_path, server, allow_reward_change=allowed, max_steps=3)
    trainer = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset())
    generate, steps = trainer._generate, iter(range(10))

    def generate_and_swap(prompts: Any) -> Any:
        if next(steps) == 1:
            server.stop()
            serve(function("vowels", weight=2.0), listen=socket)
        return generate(prompts)

    trainer._generate = generate_and_swap
    if not allowed:
        with pytest.raises(ConfigError, match=r"before step 2: weight of scorer 'vowels' was 1.0 and is 2.0"):
            trainer.train()
        return
    trainer.train()
    assert trainer._provenance["changes"] == [{"step": 1, "changes": "weight of scorer 'vowels' was 1.0 and is 2.0"}]
    assert trainer.reward_weights.tolist() == [2.0]
    written = provenance.read(Path(args.output_dir))
    assert written is not None
    assert written["scorers"]["vowels"]["weight"] == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["grpo", "luspo", "dapo"])
def test_a_row_mean_spans_the_survivors_of_all_generations_of_an_optimizer_step(
    tiny_model: str, tmp_path: Path, serve: Serve, loss_type: str
) -> None:
    # four generations in one optimizer step, each with survivors of its own
    steps = {"steps_per_generation": 1, "gradient_accumulation_steps": 4, "max_steps": 1, "max_grad_norm": 0.0}
    args = remote(tmp_path, serve(function("flaky")), loss_type=loss_type, max_failure_rate=1.0, **steps)
    trainer = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset(24))
    batches: list[Any] = []
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (batches.append(inputs), compute(model, inputs))[1]
    found: list[torch.Tensor] = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
            found.extend(parameter.grad.clone() for parameter in kwargs["model"].parameters())

    trainer.add_callback(Look())
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    rows = [batch.get("kept", torch.ones(len(batch["advantages"]))) for batch in batches]
    assert len({int(kept.sum()) for kept in rows}) > 1
    trainer.model.load_state_dict(start)
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    if loss_type == "dapo":  # divides by each generation's tokens: there the masks are all
        for batch in batches:
            (GRPOTrainer._compute_loss(trainer, trainer.model, batch) / len(batches)).backward()
    else:
        merged = [{**batch, "kept": kept} for batch, kept in zip(batches, rows, strict=True)]
        GRPOTrainer._compute_loss(trainer, trainer.model, survivors(merged)).backward()
    expected = [parameter.grad for parameter in trainer.model.parameters()]
    scale = max(gradient.abs().max() for gradient in expected)
    largest = max((a - b).abs().max() for a, b in zip(found, expected, strict=True))
    assert largest / scale < 1e-5
