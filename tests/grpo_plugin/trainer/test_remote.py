"""RemoteGRPOTrainer on one rank: TRL's numbers, with our features off and with the service in place of functions.

Token batches are off here, but for their own tests (test_step.py): their sums are TRL's up to rounding only.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.logging import MultiProcessAdapter
from trl import GRPOConfig, GRPOTrainer

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from grpo_plugin.config import setting
from reward_server.errors import ConfigError, ScoringFailedError, UnavailableError
from tests.support import scoring
from tests.support.builders import make_dataset
from tests.support.servers import function
from tests.support.training import ONE_MICRO_BATCH, largest_difference, moved, remote, stock, train

pytestmark = pytest.mark.slow

Serve = Callable[..., Any]


# ---------------------------------------------------------------------------------------------------- as TRL, when off


@pytest.mark.oldest_trl
@pytest.mark.parametrize("config", [RemoteGRPOConfig, GRPOConfig])
def test_with_local_rewards_only_the_weights_are_those_of_stock_trl(
    tiny_model: str, tmp_path: Path, config: type
) -> None:
    rewards = [scoring.vowels, scoring.even_length]
    off = {"token_batches": False} if config is RemoteGRPOConfig else {}
    args = config(str(tmp_path / "ours"), **ONE_MICRO_BATCH, **off, beta=0.04)
    ours = train(RemoteGRPOTrainer, tiny_model, args, list(rewards))
    theirs = train(GRPOTrainer, tiny_model, stock(tmp_path, beta=0.04), list(rewards))
    assert moved(ours, tiny_model)
    assert largest_difference(ours, theirs) == 0.0


def test_the_constructor_takes_what_trl_takes() -> None:
    def parameters(cls: type) -> list[tuple[str, Any]]:
        return [(p.name, p.default) for p in inspect.signature(cls).parameters.values()]

    assert parameters(RemoteGRPOTrainer) == parameters(GRPOTrainer)


# ------------------------------------------------------------------------------------------ the service in its place


@pytest.mark.oldest_trl
@pytest.mark.parametrize("conversational", [False, True])
def test_the_service_in_place_of_local_functions_gives_the_same_weights(
    tiny_model: str, tmp_path: Path, serve: Serve, conversational: bool
) -> None:
    names = ["vowels", "even_length", "target_share"]
    server = serve(*[function(name) for name in names])
    data = make_dataset(conversational=conversational)
    ours = train(RemoteGRPOTrainer, tiny_model, remote(tmp_path, server, beta=0.04), data=data)
    local = [getattr(scoring, name) for name in names]
    theirs = train(GRPOTrainer, tiny_model, stock(tmp_path, beta=0.04), local, data=data)
    assert moved(ours, tiny_model)
    assert largest_difference(ours, theirs) == 0.0
    for key in ("reward", "reward_std", "rewards/vowels/mean", "rewards/even_length/std", "frac_reward_zero_std"):
        assert [log.get(key) for log in ours.state.log_history] == [log.get(key) for log in theirs.state.log_history]


def test_local_functions_and_scorers_mix_and_server_weights_apply(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    server = serve(function("even_length", weight=0.25), function("target_share", weight=2.0))
    ours = train(RemoteGRPOTrainer, tiny_model, remote(tmp_path, server), scoring.vowels)
    local = [scoring.vowels, scoring.even_length, scoring.target_share]
    theirs = train(GRPOTrainer, tiny_model, stock(tmp_path, reward_weights=[1.0, 0.25, 2.0]), local)
    assert largest_difference(ours, theirs) == 0.0


def test_reward_weights_override_the_servers_and_reward_scorers_choose(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    server = serve(function("vowels", weight=5.0), function("raises"), function("target_share", weight=5.0))
    args = remote(tmp_path, server, reward_scorers=["target_share", "vowels"], reward_weights=[0.5, 1.5])
    ours = train(RemoteGRPOTrainer, tiny_model, args)
    local = [scoring.target_share, scoring.vowels]
    theirs = train(GRPOTrainer, tiny_model, stock(tmp_path, reward_weights=[0.5, 1.5]), local)
    assert ours.reward_func_names == ["target_share", "vowels"]
    assert largest_difference(ours, theirs) == 0.0


def test_what_functions_log_reaches_metrics_and_the_completions_table(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    args = remote(tmp_path, serve(function("logged")), max_steps=1)
    ours = train(RemoteGRPOTrainer, tiny_model, args)
    theirs = train(GRPOTrainer, tiny_model, stock(tmp_path, max_steps=1), scoring.logged)
    assert ours.state.log_history[0]["lengths/mean"] == pytest.approx(theirs.state.log_history[0]["lengths/mean"])
    assert list(ours._logs["extra"]["length"]) == list(theirs._logs["extra"]["length"])


def test_each_step_logs_latency_wait_groups_and_what_was_not_applicable(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    ours = train(RemoteGRPOTrainer, tiny_model, remote(tmp_path, serve(function("never")), max_steps=1), scoring.vowels)
    log = ours.state.log_history[0]
    assert log["reward/groups"] == 2
    assert log["reward/status/not_applicable"] == 8
    assert log["reward/latency_s"] > 0
    assert 0 <= log["reward/exposed_wait_s"] <= log["reward/latency_s"] + 1


def test_evaluation_scores_through_the_service_too(tiny_model: str, tmp_path: Path, serve: Serve) -> None:
    args = remote(tmp_path, serve(function("vowels")), max_steps=1, per_device_eval_batch_size=8)
    trainer = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset(), eval_dataset=make_dataset(3))
    metrics = trainer.evaluate()
    assert metrics["eval_reward"] == pytest.approx(metrics["eval_rewards/vowels/mean"])
    assert metrics["eval_reward/groups"] > 0


# ------------------------------------------------------------------------------------------ embedded


def test_the_embedded_service_starts_from_its_file_and_ends_with_the_trainer(tiny_model: str, tmp_path: Path) -> None:
    config = tmp_path / "reward.yaml"
    config.write_text(yaml.safe_dump({"scorers": [function("vowels")], "workers": 1}))
    trainer = train(RemoteGRPOTrainer, tiny_model, remote(tmp_path, reward_config=str(config), max_steps=1))
    assert trainer.state.log_history[0]["reward/groups"] == 2
    server = trainer._connection.server
    assert server.poll() is None
    trainer.close()
    assert server.poll() is not None


# ------------------------------------------------------------------------------------------ kl_anchor


def test_the_old_policy_as_anchor_needs_no_reference_model_and_equals_a_reference_that_is_the_old_policy(
    tiny_model: str, tmp_path: Path
) -> None:
    # Two updates on one batch (num_iterations=2) and no batch after it: the reference model, which is the initial
    # policy, is then the very policy that sampled.
    same = {"max_steps": 2, "num_iterations": 2, "beta": 0.5}
    ours = train(RemoteGRPOTrainer, tiny_model, remote(tmp_path, kl_anchor="old", **same), scoring.vowels)
    theirs = train(GRPOTrainer, tiny_model, stock(tmp_path, **same), scoring.vowels)
    assert ours.ref_model is None
    assert theirs.ref_model is not None
    assert ours.args.beta == 0.5
    assert [log["kl"] for log in ours.state.log_history[:2]] == pytest.approx(
        [log["kl"] for log in theirs.state.log_history[:2]], abs=1e-6
    )
    assert ours.state.log_history[1]["kl"] > 1e-4
    assert largest_difference(ours, theirs) < 1e-6


def test_where_the_policy_that_samples_is_updated_the_old_anchor_costs_nothing_and_says_so_once(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    MultiProcessAdapter.warning_once.cache_clear()
    ours = train(RemoteGRPOTrainer, tiny_model, remote(tmp_path, kl_anchor="old", beta=0.5), scoring.vowels)
    theirs = train(GRPOTrainer, tiny_model, stock(tmp_path, beta=0.0), scoring.vowels)
    assert {log["kl"] for log in ours.state.log_history[:5]} == {0.0}
    assert largest_difference(ours, theirs) == 0.0
    assert caplog.text.count("kl_anchor 'old' with beta 0.5 has no effect") == 1
    assert "a multiple of steps_per_generation × num_iterations (1 × 1)" in caplog.text


# ------------------------------------------------------------------------------------------ provenance


def test_the_run_and_each_checkpoint_say_which_service_scored_and_resuming_on_another_warns(
    tiny_model: str, tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    before = serve(function("vowels"))
    trainer = train(RemoteGRPOTrainer, tiny_model, remote(tmp_path, before, **saving))
    folder = Path(trainer.args.output_dir)
    run, checkpoint = (json.loads((f / "reward_service.json").read_text()) for f in (folder, folder / "checkpoint-1"))
    assert run == checkpoint
    assert run["scorers"]["vowels"]["weight"] == 1.0
    assert run["config_digest"]

    after = serve(function("vowels", weight=3.0), function("even_length"))
    resumed = RemoteGRPOTrainer(tiny_model, args=remote(tmp_path, after, **saving), train_dataset=make_dataset())
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert "weight of scorer 'vowels' was 1.0 and is 3.0" in caplog.text
    assert "scorer 'even_length' is new" in caplog.text


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", r"8 × scorer 'raises' FAILED.*KeyError"),
        ("not_a_number", r"8 × scorer 'not_a_number' INVALID.*nan"),
        ("too_few", r"INVALID.*1 scores for 4 completions"),
    ],
)
def test_a_failed_score_stops_training_and_says_what_failed(
    tiny_model: str, tmp_path: Path, serve: Serve, name: str, reason: str
) -> None:
    trainer = RemoteGRPOTrainer(
        tiny_model,
        args=remote(tmp_path, serve(function(name)), on_reward_failure="raise"),
        train_dataset=make_dataset(),
    )
    with pytest.raises(ScoringFailedError, match=f"(?s){reason}"):
        trainer.train()


def test_a_server_that_dies_stops_training_before_the_deadline(tiny_model: str, tmp_path: Path, serve: Serve) -> None:
    server = serve(function("vowels"))
    args = remote(tmp_path, server, reward_timeout_s=3, on_reward_failure="raise")
    trainer = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset())
    server.stop()
    with pytest.raises(ScoringFailedError, match=r"2 × DeadlineError.*within 3 s"):
        trainer.train()


def test_an_endpoint_that_does_not_answer_is_named_after_a_bounded_wait(tiny_model: str, tmp_path: Path) -> None:
    args = remote(tmp_path, reward_endpoint="127.0.0.1:1", reward_connect_timeout_s=1)
    with pytest.raises(UnavailableError, match=r"waited 1 s.*127\.0\.0\.1:1"):
        RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset())


def test_a_column_that_a_scorer_needs_and_the_data_lacks_is_named_before_the_model_loads(
    tmp_path: Path, serve: Serve
) -> None:
    args = remote(tmp_path, serve(function("target_share")))
    data = make_dataset().remove_columns("target")
    with pytest.raises(ConfigError, match=r"'target_share' needs the column target, and the training data has tags"):
        RemoteGRPOTrainer("no/such/model", args=args, train_dataset=data)


def test_a_group_beyond_the_servers_limit_stops_training_whatever_the_policy(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    server = serve(function("vowels"), limits={"max_group_bytes": 300})
    data = make_dataset().map(lambda row: {"padding": "" if row["target"] == "0" else "x" * 400})
    trainer = RemoteGRPOTrainer(tiny_model, args=remote(tmp_path, server), train_dataset=data)
    with pytest.raises(ScoringFailedError, match=r"2 × GroupTooLargeError.*takes 300: raise limits\.max_group_bytes"):
        trainer.train()


def test_an_unknown_scorer_is_named_with_those_that_are_there(tmp_path: Path, serve: Serve) -> None:
    args = remote(tmp_path, serve(function("vowels")), reward_scorers=["vowel"])
    with pytest.raises(ConfigError, match=r"\['vowel'\]; the reward service has \['vowels'\]"):
        RemoteGRPOTrainer("no/such/model", args=args, train_dataset=make_dataset())


def test_reward_weights_of_the_wrong_length_name_every_function(tmp_path: Path, serve: Serve) -> None:
    args = remote(tmp_path, serve(function("vowels")), reward_weights=[1.0])
    with pytest.raises(ValueError, match=r"1 values for 2 reward functions.*even_length, vowels"):
        RemoteGRPOTrainer("no/such/model", scoring.even_length, args=args, train_dataset=make_dataset())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_generations": 3}, r"num_generations \(3\) must divide the generation batch \(8 .*\[2, 4, 8\]"),
        ({"kl_anchor": "new", "beta": 0.1}, "kl_anchor must be one of reference, old, not 'new'"),
        ({"kl_anchor": "old"}, "set beta"),
        ({"kl_anchor": "old", "beta": 0.1, "sync_ref_model": True}, "sync_ref_model needs a reference model"),
        ({"reward_timeout_s": 0.0}, "reward_timeout_s must be a positive number of seconds, not 0.0"),
        ({"reward_endpoint": "a:1", "reward_config": "b"}, "exclude each other"),
        ({"on_reward_failure": "ignore"}, "must be one of raise, drop_sample, drop_group, drop_scorer.*'ignore'"),
        ({"on_reward_failure": "no.such:policy"}, "'no.such:policy' does not import: No module named 'no'"),
        ({"on_reward_failure": "json:loads"}, r"'json:loads' has no method drops\(failed_BGS\)"),
        ({"min_group_size": 1}, "min_group_size must be at least 2, not 1"),
        ({"max_failure_rate": 1.5}, "max_failure_rate is a share between 0 and 1, not 1.5"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        remote(tmp_path, **changes)


def test_a_deadline_that_would_outlast_the_process_group_is_refused_with_both_numbers(tmp_path: Path) -> None:
    class OnTwoRanks(RemoteGRPOConfig):
        world_size = 2  # what a launcher would have said

    with pytest.raises(ValueError, match=r"reward_timeout_s \(300\) would outlast.*ddp_timeout \(120\)"):
        OnTwoRanks(str(tmp_path), **{**ONE_MICRO_BATCH, "ddp_timeout": 120})


def test_a_plain_config_has_our_defaults() -> None:
    assert setting(None, "kl_anchor") == "reference"
    assert setting(None, "reward_endpoint") is None


def test_a_plain_config_has_trls_own_micro_batches(tmp_path: Path) -> None:
    assert setting(stock(tmp_path), "token_batches") is False
    assert setting(RemoteGRPOConfig(str(tmp_path), **ONE_MICRO_BATCH), "token_batches") is True
