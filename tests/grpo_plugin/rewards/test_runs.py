"""A trainer's second `train()`: what the first one left behind does not count in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, set_seed

from grpo_plugin import RemoteGRPOTrainer
from grpo_plugin.rewards import provenance
from reward_server.errors import ConfigError, ScoringFailedError
from tests.grpo_plugin.trainer.test_remote import remote
from tests.support.builders import make_dataset
from tests.support.servers import function

pytestmark = pytest.mark.slow

Serve = Callable[..., Any]


def stopped_by_an_outage(model: str, folder: Path, serve: Serve, listen: str) -> RemoteGRPOTrainer:
    """A trainer whose run was stopped after two steps, in which the service was away."""
    server = serve(function("vowels"), listen=listen)
    args = remote(folder, server, reward_timeout_s=0.5, failure_window=2, reward_connect_timeout_s=20)
    trainer = RemoteGRPOTrainer(model, args=args, train_dataset=make_dataset())
    server.stop()
    with pytest.raises(ScoringFailedError, match="100% of the completions of the last 2 steps"):
        trainer.train()
    trainer.args.reward_timeout_s = 30.0
    return trainer


@pytest.mark.parametrize("resume", [True, None])
def test_after_an_outage_that_stopped_the_run_training_goes_on_with_the_service_back(
    tiny_model: str, tmp_path: Path, serve: Serve, resume: bool | None
) -> None:
    listen = f"unix:{tmp_path}/r.sock"
    trainer = stopped_by_an_outage(tiny_model, tmp_path, serve, listen)
    assert trainer.state.log_history[1]["reward/steps_without_update"] == 2
    serve(function("vowels"), listen=listen)
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == 5
    logs = [log for log in trainer.state.log_history if "reward/groups" in log][2 if resume else 0 :]
    assert [log["step"] for log in logs] == ([3, 4, 5] if resume else [1, 2, 3, 4, 5])
    assert all(log["reward/steps_without_update"] == 0 and "reward/dropped" not in log for log in logs)


def test_a_new_run_takes_the_service_as_it_is_now_and_a_resumed_one_records_the_change(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    listen = f"unix:{tmp_path}/r.sock"
    server = serve(function("vowels"), listen=listen)
    args = remote(tmp_path, server, max_steps=2, save_strategy="steps", save_steps=1)
    trainer = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset())
    trainer.train()
    first = trainer._connection
    server.stop()
    server = serve(function("vowels", weight=2.0), listen=listen)
    trainer.train()
    second = trainer._connection
    assert first is not None
    assert second is not None
    assert first.run_id != second.run_id
    assert trainer.reward_weights.tolist() == [2.0]
    assert "changes" not in trainer._provenance

    server.stop()
    server = serve(function("vowels", weight=3.0), listen=listen)
    trainer.train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-1")
    change = {"step": 1, "changes": "weight of scorer 'vowels' was 2.0 and is 3.0"}
    assert trainer._provenance["changes"] == [change]
    written = provenance.read(Path(args.output_dir) / "checkpoint-2")
    assert written is not None
    assert written["changes"] == [change]

    # A new trainer, as in another process, carries the history on.
    resumed = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset())
    resumed.train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-2")
    assert resumed._provenance["changes"] == [change]

    server.stop()
    serve(function("even_length"), listen=listen)
    with pytest.raises(ConfigError, match=r"\['vowels'\].*the reward service has \['even_length'\]"):
        trainer.train()


@pytest.mark.parametrize("token_batches", [False, True])
@pytest.mark.parametrize("score_ahead", [0, 1])
def test_a_run_broken_off_within_a_step_leaves_nothing_to_the_next(
    tiny_model: str, tmp_path: Path, serve: Serve, token_batches: bool, score_ahead: int
) -> None:
    # four calls a generation, of which the first run ends in the third; the second run must generate in its first call
    args = remote(
        tmp_path,
        serve(function("vowels")),
        max_steps=2,
        per_device_train_batch_size=4,
        steps_per_generation=4,
        gradient_accumulation_steps=2,
        token_batches=token_batches,
        score_ahead=score_ahead,
        shuffle_dataset=False,
    )

    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                raise KeyboardInterrupt

    trainer = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset())
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    breaks = Break()
    trainer.add_callback(breaks)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(breaks)
    trainer._metrics["train"]["reward"].append(1000.0)  # of a step that did not end

    trainer.model.load_state_dict(start)
    trainer.optimizer = trainer.lr_scheduler = None
    set_seed(args.seed)  # as making a trainer does
    trainer.train()
    fresh = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset())
    fresh.train()
    rewards = [[log.get("reward") for log in each.state.log_history] for each in (trainer, fresh)]
    assert rewards[0] == rewards[1]
    pairs = zip(trainer.model.state_dict().values(), fresh.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
