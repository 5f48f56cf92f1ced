"""Token batches on one rank: the weights of TRL's micro-batches, for models of several kinds, and what they save."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.logging import MultiProcessAdapter
from peft import LoraConfig

from grpo_plugin import RemoteGRPOTrainer
from grpo_plugin.batching.plan import PackedLayout, PaddedLayout, make_plan
from grpo_plugin.trainer import log_probs, token_batches
from tests.support import scoring
from tests.support.builders import make_dataset, save_tiny_model
from tests.support.training import largest_difference, train_both, train_skewed

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------------------------------ the same from fewer tokens


def test_rows_without_signal_are_left_out_and_half_the_forwards_with_them(tiny_model: str, tmp_path: Path) -> None:
    ours, theirs = train_both(tmp_path, tiny_model)
    assert isinstance(ours._layout, PackedLayout)
    assert largest_difference(ours, theirs) < 1e-6
    assert theirs.counting.forwards == 3 * 4
    assert ours.counting.forwards <= theirs.counting.forwards / 2
    assert ours.counting.tokens < theirs.counting.tokens / 3
    log = ours.state.log_history[0]
    assert log["batches/rows"] + log["batches/rows_without_signal"] == 16
    assert log["batches/tokens"] <= log["batches/tokens_trl"] / 3


def test_a_step_without_any_signal_is_one_forward_of_a_token_and_moves_what_momentum_moves(
    tiny_model: str, tmp_path: Path
) -> None:
    def only_at_first(prompts: list[Any], completions: list[Any], trainer_state: Any, **_: Any) -> list[float]:
        return scoring.vowels(completions) if trainer_state.global_step == 0 else [1.0] * len(completions)

    momentum = {"optim_args": "momentum=0.9", "weight_decay": 0.01}
    ours, theirs = train_both(tmp_path, tiny_model, reward=only_at_first, **momentum)
    assert largest_difference(ours, theirs) < 1e-6
    steps = [log["batches/tokens"] for log in ours.state.log_history if "batches/tokens" in log]
    assert steps[1:] == [0, 0]
    assert ours.counting.tokens == steps[0] + 2


def test_a_budget_below_trls_makes_more_and_smaller_forwards(tiny_model: str, tmp_path: Path) -> None:
    ours, theirs = train_both(tmp_path, tiny_model, ours={"max_tokens_per_micro_batch": 40}, reward=scoring.vowels)
    assert largest_difference(ours, theirs) < 1e-6
    assert ours.counting.forwards > theirs.counting.forwards
    assert ours.counting.tokens < theirs.counting.tokens


def test_old_and_reference_log_probs_are_computed_without_padding_too(tiny_model: str, tmp_path: Path) -> None:
    ours, theirs = train_both(tmp_path, tiny_model, beta=0.1, num_iterations=2, steps_per_generation=8)
    assert largest_difference(ours, theirs) < 1e-6
    assert [log["kl"] for log in ours.state.log_history[:1]] == pytest.approx([0.0], abs=1e-6)


def test_a_generation_is_planned_once_however_often_it_is_trained_on(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[int] = []

    def counted(*args: Any) -> Any:
        plans.append(len(args[1]))
        return make_plan(*args)

    for module in (log_probs, token_batches):
        monkeypatch.setattr(module, "make_plan", counted)
    twice = {"num_iterations": 2, "steps_per_generation": 8, "max_steps": 8, "beta": 0.1}
    ours, theirs = train_both(tmp_path, tiny_model, reward=scoring.vowels, **twice)
    # 2 generations, each of 2 optimizer steps that are taken twice. One plan for each pair of old and reference
    # log-probabilities, and one for each optimizer step.
    assert len(plans) == 2 * (1 + 2)
    assert largest_difference(ours, theirs) < 2e-6
    logged = [log["batches/tokens"] for log in ours.state.log_history if "batches/tokens" in log]
    assert len(logged) == 8
    assert logged[:2] == logged[2:4]


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": True},
        {"pad_to_multiple_of": 8},
        {"pad_to_multiple_of": 8, "padding_free": False},
        pytest.param({"mask_truncated_completions": True}, marks=pytest.mark.oldest_trl),
        {"top_entropy_quantile": 0.5},
        {"entropy_coef": 0.01},
        {"off_policy_mask_threshold": 0.5, "num_iterations": 2},
        {"delta": 4.0, "scale_rewards": "none", "num_iterations": 2},
        {"epsilon_high": 0.3, "loss_type": "vespo", "num_iterations": 2},
    ],
    ids=str,
)
def test_settings_that_touch_the_step_leave_the_weights_stock_trls(
    tiny_model: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    ours_only = {name: changes.pop(name) for name in ["padding_free"] if name in changes}
    ours, theirs = train_both(tmp_path, tiny_model, ours=ours_only, **changes)
    assert largest_difference(ours, theirs) < 2e-6


KINDS = {
    "mistral": ({"kind": "mistral", "sliding_window": 9}, PackedLayout),
    "grouped queries": ({"num_attention_heads": 4}, PackedLayout),
    "experts": ({"kind": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}, PackedLayout),
}


@pytest.mark.parametrize("name", KINDS)
def test_models_of_other_kinds_are_packed_and_learn_the_same(tmp_path: Path, name: str) -> None:
    options, layout = KINDS[name]
    ours, theirs = train_both(tmp_path, str(save_tiny_model(tmp_path / "model", **options)))
    assert isinstance(ours._layout, layout)
    assert largest_difference(ours, theirs) < 1e-5


def test_adapters_are_trained_alike(tiny_model: str, tmp_path: Path) -> None:
    ours, theirs = train_both(
        tmp_path, tiny_model, peft_config=LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.0)
    )
    assert isinstance(ours._layout, PackedLayout)
    assert largest_difference(ours, theirs) < 1e-6


def test_attention_that_takes_no_packed_rows_is_named_once_and_rows_are_sorted_and_trimmed(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        eager = {"model_init_kwargs": {"attn_implementation": "eager"}}
        ours, theirs = train_both(tmp_path, tiny_model, **eager)
    assert isinstance(ours._layout, PaddedLayout)
    assert caplog.text.count("attention 'eager' takes no packed rows") == 1
    assert largest_difference(ours, theirs) < 1e-6
    assert ours.counting.tokens < theirs.counting.tokens / 2


def test_a_model_whose_numbers_depend_on_padding_goes_trls_way_to_the_bit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ours, theirs = train_both(tmp_path, str(save_tiny_model(tmp_path / "model", kind="gpt2")))
    assert ours._layout is None
    assert "log-probabilities depend on padding" in caplog.text
    assert largest_difference(ours, theirs) == 0.0


def test_why_rows_or_micro_batches_stay_is_said_once(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    MultiProcessAdapter.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model, beta=0.1)
        train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model, loss_type="bnpo")
    assert caplog.text.count("the KL term has a gradient in rows without advantage") == 1
    assert caplog.text.count("loss 'bnpo' is a mean over its micro-batch") == 1


def test_evaluation_goes_trls_way(tiny_model: str, tmp_path: Path) -> None:
    evaluate = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}
    ours, theirs = train_both(tmp_path, tiny_model, eval_dataset=make_dataset(4), **evaluate)
    losses = [[log["eval_loss"] for log in t.state.log_history if "eval_loss" in log] for t in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


# ------------------------------------------------------------------------------------------ metrics, reductions, noise


def one_long_rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Completions of one token, half of which were cut off before their end; the first has nine tokens."""
    tokenize = trainer.processing_class
    completion_ids = [
        tokenize(text="abcdefgh"[: 8 if index == 0 else index % 2])["input_ids"] for index in range(len(prompts))
    ]
    completion_ids = [ids if len(ids) == 1 else [*ids, tokenize.eos_token_id] for ids in completion_ids]
    logprobs = [[0.0] * len(ids) for ids in completion_ids]
    return {"prompt_ids": tokenize(text=prompts)["input_ids"], "completion_ids": completion_ids, "logprobs": logprobs}


def by_place(completions: list[Any], **_: Any) -> list[float]:
    return [index * 0.37 % 1 for index in range(len(completions))]


@pytest.mark.parametrize("padding_free", [True, False])
def test_metrics_are_stock_trls_where_a_micro_batch_is_trimmed_to_one_token(
    tiny_model: str, tmp_path: Path, padding_free: bool
) -> None:
    ours, theirs = train_both(
        tmp_path,
        tiny_model,
        ours={"padding_free": padding_free},
        reward=by_place,
        rollout_func=one_long_rollout,
        loss_type="bnpo",  # a mean over TRL's own micro-batches, which are trimmed
        mask_truncated_completions=True,
        beta=0.1,
        num_iterations=2,
    )
    assert largest_difference(ours, theirs) < 1e-6
    for one, other in zip(ours.state.log_history[:3], theirs.state.log_history[:3], strict=True):
        for name in ("entropy", "kl", "clip_ratio/region_mean"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


def test_gradients_are_reduced_after_each_batch_if_accelerate_is_asked_to(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[str] = []
    no_sync = Accelerator.no_sync

    def counted(self: Accelerator, model: Any) -> Any:
        entered.append(type(model).__name__)
        return no_sync(self, model)

    monkeypatch.setattr(Accelerator, "no_sync", counted)
    budget = {"max_tokens_per_micro_batch": 40, "reward": scoring.vowels}
    train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model, **budget)
    assert len(entered) > 3 * 3, "more often than TRL, which has 4 batches a step"
    entered.clear()
    each = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    train_skewed(RemoteGRPOTrainer, tmp_path, tiny_model, accelerator_config=each, **budget)
    assert entered == []


def test_with_neftune_batches_are_trls_to_the_bit_since_its_noise_depends_on_their_width(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    MultiProcessAdapter.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        ours, theirs = train_both(tmp_path, tiny_model, neftune_noise_alpha=5.0, num_iterations=2)
    assert "NEFTune's noise depends on the width of a batch (neftune_noise_alpha)" in caplog.text
    assert largest_difference(ours, theirs) == 0.0
