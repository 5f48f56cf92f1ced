"""dynamic_sampling: a batch is filled with groups that have signal, and a row brings along what is its.

That gradients are those of the kept groups alone is shown in tests/end_to_end/test_dynamic_sampling.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from grpo_plugin import RemoteGRPOTrainer
from reward_server.errors import ConfigError, ScoringFailedError
from reward_server.evaluation.recorded import read_records
from tests.end_to_end.ranks import masked_rollout
from tests.support.sampling import NAMES, SIZE, all_open, all_solved, data, passes, run
from tests.support.servers import function
from tests.support.training import remote

pytestmark = pytest.mark.slow

Serve = Callable[..., Any]


# ------------------------------------------------------------------------------------------------------------ filling


@pytest.mark.oldest_trl
def test_every_step_trains_on_open_prompts_only_and_says_what_it_took(tiny_model: str, tmp_path: Path) -> None:
    trainer = run(tiny_model, tmp_path)
    assert all("open" in prompt for step in trainer.kept() for prompt in step)
    assert len(trainer.logged("sampling/prompts")) == 6
    assert sum(trainer.logged("sampling/prompts")) == len(trainer.scored) <= len(trainer.prompts)
    assert trainer.logged("frac_reward_zero_std") == [0.0] * 6
    assert trainer.logged("sampling/unfilled") == [0.0] * 6
    assert all(rounds <= 3 for rounds in trainer.logged("sampling/rounds"))
    each = zip(trainer.logged("sampling/kept_share"), trainer.logged("sampling/prompts"), strict=True)
    assert sum(share * prompts for share, prompts in each) == sum("open" in prompt for prompt in trainer.scored)
    assert max(trainer.logged("sampling/reward")) > 0.5, "of all that was sampled"
    assert trainer.logged("reward") == [0.5] * 6, "of what is trained on"


def test_where_every_group_has_signal_it_changes_no_number(tiny_model: str, tmp_path: Path) -> None:
    on = run(tiny_model, tmp_path / "on", all_open)
    off = run(tiny_model, tmp_path / "off", all_open, dynamic_sampling=False)
    assert on.events == ["generate", "score", "train"] * 6
    assert off.events == []
    for name, value in off.model.state_dict().items():
        assert torch.equal(value, on.model.state_dict()[name]), name
    for line, other in zip(on.state.log_history[:-1], off.state.log_history[:-1], strict=True):
        changed = {name for name in line if line.get(name) != other.get(name) and name != "step_time"}
        assert all(name.startswith("sampling/") for name in changed), changed


def test_if_nothing_has_signal_the_rounds_end_and_the_step_says_so(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(tiny_model, tmp_path, all_solved, max_steps=2)
    assert trainer.logged("sampling/unfilled") == [2.0, 2.0]
    assert max(trainer.logged("sampling/rounds")) <= 3
    assert max(trainer.logged("sampling/prompts")) <= 2 + len(NAMES), "a batch asks for no prompt twice"
    assert trainer.logged("grad_norm") == [0.0, 0.0]
    assert "group_filter has kept fewer groups than the 2 of a batch" in caplog.text


@pytest.mark.parametrize("count", [1, 2])
def test_with_fewer_prompts_than_a_batch_asks_for_it_ends_too(tiny_model: str, tmp_path: Path, count: int) -> None:
    names = ["solved 0", "solved 1"][:count] * 2
    trainer = run(tiny_model, tmp_path, train_dataset=data(names), max_steps=2)
    assert trainer.state.global_step == 2


def test_epochs_and_steps_keep_their_meaning(tiny_model: str, tmp_path: Path) -> None:
    on = run(tiny_model, tmp_path / "on", num_train_epochs=2, max_steps=-1)
    off = run(tiny_model, tmp_path / "off", dynamic_sampling=False, num_train_epochs=2, max_steps=-1)
    assert on.state.global_step == off.state.global_step == 16
    assert set(on.prompts) == set(NAMES)


def test_evaluation_is_as_without_it(tiny_model: str, tmp_path: Path) -> None:
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 8}
    trainer = run(tiny_model, tmp_path, eval_dataset=data(NAMES[:4]), **evaluation)
    assert len(trainer.logged("eval_reward")) == 3
    assert trainer.logged("eval_reward")[0] == pytest.approx((0.5 * 2 + 1.2 * 2) / 4), "solved prompts are not replaced"
    assert not any(name.startswith("eval_sampling/") for line in trainer.state.log_history for name in line)


# --------------------------------------------------------------------------------------- what else a batch brings along


def echoed(
    prompts: list[str], completions: list[str], name: list[str], said: list[str], log_extra: Any, **_: Any
) -> Any:
    """Fails where columns, what a rollout added and prompts are not of the same row."""
    assert name == prompts
    assert said == [f"said {prompt}" for prompt in prompts]
    log_extra("seen", list(prompts))
    return passes(prompts, completions)


def talking(prompts: list[str], trainer: Any) -> dict[str, Any]:
    return {**masked_rollout(prompts, trainer), "said": [f"said {prompt}" for prompt in prompts]}


@pytest.mark.parametrize("changes", [{}, {"beta": 0.1, "num_iterations": 2}, {"score_ahead": 1}])
def test_columns_masks_extra_fields_and_logs_go_where_their_row_goes(
    tiny_model: str, tmp_path: Path, serve: Serve, changes: dict[str, Any]
) -> None:
    server = serve(function("even_length", weight=0.0)) if "score_ahead" in changes else None
    trainer = run(tiny_model, tmp_path, echoed, server, rollout_func=talking, report_by="name", **changes)
    table = trainer._logs
    assert list(table["extra"]["seen"]) == list(table["prompt"])
    reported = {name.split("/")[1] for line in trainer.state.log_history for name in line if name.endswith("/groups")}
    assert reported - {"groups"} <= {name for name in NAMES if "open" in name} | {"other"}
    for batch, made in zip(trainer.batches, trainer.trained, strict=True):
        masks = [row.tool_mask for row in batch.rows_N]
        assert [row.tolist()[: len(mask)] for row, mask in zip(made["tool_mask"], masks, strict=True)] == masks


TEMPLATE = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()


def test_conversations_with_tools_and_an_adapter(tiny_model: str, tmp_path: Path) -> None:
    def look_up(word: str) -> str:
        """Looks a word up.

        Args:
            word: The word.
        """
        return word

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    prompts = [[{"role": "user", "content": name}] for name in NAMES]
    trainer = run(
        tiny_model,
        tmp_path,
        lambda prompts, **_: passes([prompt[0]["content"] for prompt in prompts], []),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.0),
        tools=[look_up],
        processing_class=tokenizer,
        beta=0.1,
        max_steps=3,
    )
    assert len(trainer.logged("tools/call_frequency")) == 3
    assert all("open" in prompt[0]["content"] for step in trainer.kept() for prompt in step)
    assert trainer.logged("frac_reward_zero_std") == [0.0] * 3


def test_groups_that_failed_are_replaced_and_single_failures_are_dropped_as_ever(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    trainer = run(tiny_model, tmp_path, None, serve(function("flaky")), max_failure_rate=1.0, record_rewards="all")
    dropped = [batch.dropped_R for batch in trainer.batches if batch.dropped_R is not None]
    assert dropped
    for batch, made in zip(trainer.batches, trainer.trained, strict=True):
        if batch.dropped_R is not None:
            assert made["kept"].tolist() == [float(not gone) for gone in batch.dropped_R.tolist()]
            assert [bool(failed) for failed in batch.failures_R] == batch.dropped_R.tolist()
            alive = (~batch.dropped_R).view(-1, SIZE).sum(dim=1).tolist()
            assert all(count >= 2 for count in alive) or trainer.logged("sampling/unfilled")
    groups = [record.group for record in read_records([tmp_path / "ours" / "records"])]
    trained = [prompt for step in trainer.kept() for prompt in step]
    assert [group.prompt for group in groups] == trained, "what is trained on is what is recorded"


def test_a_failure_that_stops_training_leaves_no_call_behind(tiny_model: str, tmp_path: Path, serve: Serve) -> None:
    server = serve(function("fails_in_steps_1_and_2"))
    with pytest.raises(ScoringFailedError, match="away"):
        run(tiny_model, tmp_path, None, server, on_reward_failure="raise", score_ahead=1, oversample=2.0)


def test_the_difficulty_of_all_sampled_prompts_is_noted(tiny_model: str, tmp_path: Path) -> None:
    trainer = run(
        tiny_model,
        tmp_path,
        lambda prompts, **_: [min(x, 1.0) for x in passes(prompts, [])],
        difficulty_band=[0.1, 0.9],
    )
    assert trainer._difficulty is not None
    assert len(trainer._difficulty.state()["shares"]) == len(set(trainer.prompts))


# ------------------------------------------------------------------------------------------------ filters and settings


PICKY = SimpleNamespace(keeps=lambda groups: groups.rewards_BG.amax(dim=1) > 1)


def test_a_filter_of_a_users_own_and_a_pass_rate_decide_instead(tiny_model: str, tmp_path: Path) -> None:
    own = run(tiny_model, tmp_path / "own", group_filter=f"{__name__}:PICKY", max_steps=2)
    assert all("solved" in prompt for step in own.kept() for prompt in step)
    rate = run(tiny_model, tmp_path / "rate", group_filter="pass_rate", pass_rate=[0.4, 0.6], max_steps=2)
    assert all("open" in prompt for step in rate.kept() for prompt in step)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"max_sampling_rounds": 0}, "max_sampling_rounds must be at least 1, not 0"),
        ({"oversample": 0.5}, r"oversample is between 1.0 \(off\) and 8, not 0.5"),
        ({"max_group_age": -1}, "max_group_age is a number of optimizer steps, 0 for none, not -1"),
        ({"group_filter": "best"}, "group_filter must be one of has_signal, pass_rate"),
        ({"pass_rate": [0.1, 0.9]}, "pass_rate belongs to group_filter 'pass_rate', and group_filter is 'has_signal'"),
        ({"dynamic_sampling": False, "oversample": 1.5}, r"oversample \(1.5\) does nothing without dynamic_sampling"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        remote(tmp_path, **{"dynamic_sampling": True, **changes})


def test_streams_and_a_pass_rate_of_nobody_are_refused(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="load the data without streaming"):
        run(tiny_model, tmp_path, train_dataset=data().to_iterable_dataset())
    rate = {"group_filter": "pass_rate", "pass_rate": [0.1, 0.9]}
    with pytest.raises(ConfigError, match="set pass_rate_scorer to one of passes, all_open, not None"):
        run(tiny_model, tmp_path, [passes, all_open], **rate)


def test_environments_are_refused_before_anything_starts(tiny_model: str, tmp_path: Path) -> None:
    args = remote(tmp_path, dynamic_sampling=True)
    with pytest.raises(ValueError, match="environments would be reset by it: set dynamic_sampling to False"):
        RemoteGRPOTrainer(tiny_model, args=args, train_dataset=data(), environment_factory=object)
