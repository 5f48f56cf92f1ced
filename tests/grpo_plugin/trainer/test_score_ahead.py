"""score_ahead: the next batch is generated while the service scores this one, and none is lost."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo_plugin import RemoteGRPOTrainer
from grpo_plugin.trainer.score_ahead import Lookahead
from reward_server.errors import ScoringFailedError
from tests.support.builders import make_dataset
from tests.support.servers import function
from tests.support.training import remote

pytestmark = pytest.mark.slow

Serve = Callable[..., Any]


class Spy(RemoteGRPOTrainer):
    """Notes the weights that each generation is sampled with, and what is trained on."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.sampled_with: list[dict[str, torch.Tensor]] = []
        self.trained: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def _generate(self, prompts: list[Any]) -> Any:
        if self.model.training and self._replayed is None:
            self.sampled_with.append(copy.deepcopy(self.model.state_dict()))
        return super()._generate(prompts)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if self.model.training:
            self.trained.append(inputs)
        return super()._compute_loss(model, inputs)

    def prompts(self) -> list[list[str]]:
        return [
            sorted(self.processing_class.batch_decode(b["prompt_ids"], skip_special_tokens=True)) for b in self.trained
        ]


def ahead(tiny_model: str, tmp_path: Path, server: Any, rows: int = 48, **changes: Any) -> Spy:
    args = remote(tmp_path, server, **{"score_ahead": 1, "token_batches": False, "max_steps": 4, **changes})
    return Spy(tiny_model, args=args, train_dataset=make_dataset(rows), eval_dataset=make_dataset(4))


def log_probs(trainer: Spy, model: str, weights: dict[str, torch.Tensor], batch: dict[str, Any]) -> torch.Tensor:
    """What the policy of these weights says of a batch's completions, by TRL's own code."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    policy.load_state_dict(weights)
    policy.forward = type(trainer.model).forward.__get__(policy)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        logits = policy(input_ids=ids, attention_mask=mask).logits[:, :-1] / trainer.temperature
    chosen = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
    return chosen[:, -batch["completion_ids"].shape[1] :] * batch["completion_mask"]


def test_a_batch_is_trained_on_one_update_late_with_the_log_probs_of_the_policy_that_sampled_it(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    trainer = ahead(tiny_model, tmp_path, serve(function("vowels")))
    trainer.train()
    assert len(trainer.trained) == len(trainer.sampled_with) == 4, "as many generations as steps, none beyond the end"
    for number, (weights, batch) in enumerate(zip(trainer.sampled_with, trainer.trained, strict=True)):
        expected = log_probs(trainer, tiny_model, weights, batch)
        assert torch.allclose(batch["old_per_token_logps"], expected, atol=1e-5), f"batch {number}"
    same = [
        all(torch.equal(before[name], after[name]) for name in before)
        for before, after in zip(trainer.sampled_with, trainer.sampled_with[1:], strict=False)
    ]
    assert same == [True, False, False], "the first two are sampled before the first update, each other after one more"


def test_without_it_every_batch_is_on_policy_and_no_old_log_probs_are_computed(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    trainer = ahead(tiny_model, tmp_path, serve(function("vowels")), score_ahead=0)
    trainer.train()
    assert all("old_per_token_logps" not in batch for batch in trainer.trained)


def test_over_epochs_and_evaluations_and_reused_generations_every_step_trains_on_its_own_prompts(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    changes = {
        "rows": 6,  # three generations an epoch of two groups each
        "num_train_epochs": 2,
        "max_steps": -1,
        "steps_per_generation": 2,
        "per_device_train_batch_size": 4,
        "num_iterations": 2,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "per_device_eval_batch_size": 8,
    }
    server = serve(function("vowels"))
    ours = ahead(tiny_model, tmp_path, server, **changes)
    ours.train()
    on_policy = ahead(tiny_model, tmp_path, server, **changes, score_ahead=0)
    on_policy.train()
    assert ours.state.global_step == on_policy.state.global_step == 24
    assert len(ours.sampled_with) == len(on_policy.sampled_with) == 6
    assert by_generation(ours.prompts()) == by_generation(on_policy.prompts())
    assert any("eval_reward" in log for log in ours.state.log_history)


def by_generation(prompts: list[list[str]]) -> list[list[str]]:
    """The prompts of each generation of four calls, whatever the shuffle within made of them."""
    return [sorted(itertools.chain(*prompts[start : start + 4])) for start in range(0, len(prompts), 4)]


def test_resuming_goes_on_with_the_prompts_that_a_run_without_a_break_would_have_had(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    server, saving = serve(function("vowels")), {"save_strategy": "steps", "save_steps": 1}
    whole = ahead(tiny_model, tmp_path, server, **saving)
    whole.train()
    resumed = ahead(tiny_model, tmp_path, server, **saving)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-2"))
    assert resumed.prompts() == whole.prompts()[2:]


@pytest.mark.oldest_trl
@pytest.mark.parametrize("token_batches", [False, True])
def test_it_learns_with_failed_scores_too(tiny_model: str, tmp_path: Path, serve: Serve, token_batches: bool) -> None:
    trainer = ahead(
        tiny_model, tmp_path, serve(function("flaky")), token_batches=token_batches, max_failure_rate=1.0, beta=0.1
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward/groups" in log]
    assert len(logs) == 4
    assert sum(log.get("reward/dropped", 0) for log in logs) > 0
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())


def test_a_failure_stops_it_and_leaves_no_call_behind(tiny_model: str, tmp_path: Path, serve: Serve) -> None:
    trainer = ahead(tiny_model, tmp_path, serve(function("raises")), on_reward_failure="raise")
    with pytest.raises(ScoringFailedError, match="KeyError"):
        trainer.train()
    assert trainer._begun is None


def test_looking_ahead_hands_out_every_batch_once_and_in_order() -> None:
    source = [[{"prompt": str(number)}] for number in range(5)]
    batches = list(Lookahead(iter(source), distance=2))
    assert [batch.rows for batch in batches] == source
    assert [batch.upcoming for batch in batches] == [*source[2:], None, None]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"score_ahead": 2, "reward_endpoint": "a:1"}, "score_ahead is a number of batches, 0 or 1, not 2"),
        ({"score_ahead": 1}, "name one by reward_endpoint or reward_config"),
        (
            {"max_tokens_per_micro_batch": 0},
            "max_tokens_per_micro_batch must be a number of at least 1, or 'auto', not 0",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        remote(tmp_path, **changes)


def test_environments_are_refused_before_anything_starts(tiny_model: str, tmp_path: Path) -> None:
    args = remote(tmp_path, reward_endpoint="127.0.0.1:1", score_ahead=1)
    with pytest.raises(ValueError, match="environments would be reset"):
        RemoteGRPOTrainer(tiny_model, args=args, train_dataset=make_dataset(), environment_factory=object)
