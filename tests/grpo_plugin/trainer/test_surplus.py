"""dynamic_sampling: what is not waited for, what is kept for the next batch, and what a break makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.grpo_plugin.trainer.test_score_ahead import log_probs
from tests.support.sampling import Spy, data, run
from tests.support.servers import function

pytestmark = pytest.mark.slow

Serve = Callable[..., Any]


def old(batch: dict[str, Any], row: int) -> torch.Tensor:
    """The old log-probabilities of a row's own tokens; where rows are padded there are some of padding too."""
    found: torch.Tensor = batch["old_per_token_logps"][row] * batch["completion_mask"][row]
    return found


# -------------------------------------------------------------------------------------------- waiting, and what is kept


def test_a_round_is_generated_while_the_one_before_it_is_scored(tiny_model: str, tmp_path: Path) -> None:
    names = [f"{'solved' if number % 3 else 'open'} {number}" for number in range(96)]
    trainer = run(tiny_model, tmp_path, train_dataset=data(names), per_device_train_batch_size=32)
    first, *later, _ = "".join(event[0] for event in trainer.events).split("t")
    assert first.startswith("gs"), "nothing is known before the first scores"
    assert all(step.startswith("gg") for step in later), later


@pytest.mark.oldest_trl
def test_what_is_generated_beyond_need_is_trained_on_next_with_the_log_probs_of_its_own_policy(
    tiny_model: str, tmp_path: Path
) -> None:
    trainer = run(tiny_model, tmp_path, oversample=2.0, max_steps=8)
    assert any(row.old_log_probs is not None for batch in trainer.batches for row in batch.rows_N)
    assert set(trainer.logged("sampling/age")) > {0.0}
    assert max(trainer.logged("sampling/age")) <= 1
    for step, batch in enumerate(trainer.trained):
        rows = trainer.batches[step].rows_N
        if not trainer.batches[step].has_old:
            assert "old_per_token_logps" not in batch
            continue
        now = log_probs(trainer, tiny_model, trainer.sampled_with[step], batch)
        before = log_probs(trainer, tiny_model, trainer.sampled_with[step - 1], batch)
        for row, sampled in enumerate(rows):
            expected = now[row] if sampled.old_log_probs is None else before[row]
            assert torch.allclose(old(batch, row), expected, atol=1e-5)


def test_a_full_batch_waits_for_no_scores_and_the_next_one_finds_them(tiny_model: str, tmp_path: Path) -> None:
    names = [f"{'solved' if number % 3 else 'open'} {number}" for number in range(96)]
    options = {"train_dataset": data(names), "per_device_train_batch_size": 32, "oversample": 1.5}
    trainer = run(tiny_model, tmp_path, **options)
    events = "".join(event[0] for event in trainer.events).split("t")[1:-1]
    assert sum(step.startswith("gg") for step in events) >= 4, events
    assert len(trainer.scored) < len(trainer.prompts), "the last rounds are not waited for"
    assert trainer.logged("sampling/unfilled") == [0.0] * 6
    later = trainer.logged("sampling/age")[1:]
    assert all(0 < age <= 1 for age in later), "each batch after the first has groups of the one before"
    kept = [row for batch in trainer.batches for row in batch.rows_N]
    assert len({id(row) for row in kept}) == len(kept), "no group is trained on twice"


def test_at_age_0_nothing_is_kept(tiny_model: str, tmp_path: Path) -> None:
    trainer = run(tiny_model, tmp_path, oversample=2.0, max_group_age=0)
    assert trainer.logged("sampling/age") == [0.0] * 6
    assert not any(batch.has_old for batch in trainer.batches)
    assert sum(trainer.logged("sampling/surplus")) > 0, "what was left over is counted"


def test_with_score_ahead_scores_are_waited_for_behind_the_next_generation(
    tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    server = serve(function("signal_in_half"))
    names = [f"prompt {number}" for number in range(16)]
    trainer = run(tiny_model, tmp_path, None, server, train_dataset=data(names), score_ahead=1, max_steps=7)
    even = sum(int(prompt[-1]) % 2 == 0 for step in trainer.kept() for prompt in step)
    assert even == sum(trainer.logged("sampling/unfilled"))
    events = "".join(event[0] for event in trainer.events).split("t")
    assert any("sgg" in step for step in events), "a round for this batch, and the next batch before its scores"
    assert all(batch.has_old for batch in trainer.batches)
    for step, batch in enumerate(trainer.trained):
        at = [trainer.sampled_with[max(0, step - age)] for age in (0, 1)]
        now, before = (log_probs(trainer, tiny_model, weights, batch) for weights in at)
        for row, sampled in enumerate(trainer.batches[step].rows_N):
            expected = now[row] if sampled.old_log_probs is None else before[row]
            assert torch.allclose(old(batch, row), expected, atol=1e-5), (step, row)


# -------------------------------------------------------------------------------------------------- runs, breaks, seeds


def test_a_seed_gives_the_same_run_again(tiny_model: str, tmp_path: Path) -> None:
    one, other = (run(tiny_model, tmp_path / name, oversample=1.5) for name in ("one", "other"))
    assert one.prompts == other.prompts
    assert all(torch.equal(v, other.model.state_dict()[k]) for k, v in one.model.state_dict().items())


def test_a_run_that_resumes_visits_what_the_whole_run_visits(tiny_model: str, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "max_group_age": 0}
    whole = run(tiny_model, tmp_path, **saving)
    resumed = run(tiny_model, tmp_path / "b", resume=str(Path(whole.args.output_dir) / "checkpoint-3"), **saving)
    assert resumed.prompts == whole.prompts[whole.generated[2] :]
    assert resumed.kept() == whole.kept()[3:]


@pytest.mark.parametrize("ahead", [0, 1])
def test_prompts_of_groups_that_a_break_loses_come_first_after_it(
    tiny_model: str, tmp_path: Path, serve: Serve, ahead: int
) -> None:
    """Those of the surplus and, with score_ahead, of the batch that is being scored."""
    saving = {"save_strategy": "steps", "save_steps": 1, "oversample": 3.0, "score_ahead": ahead}
    names = [f"prompt {number}" for number in range(16)]
    server = serve(function("signal_in_half"))
    whole = run(tiny_model, tmp_path, None, server, train_dataset=data(names), **saving)
    lost = [index for index in range(1, 6) if _returned(whole, index)]
    assert lost
    folder = Path(whole.args.output_dir) / f"checkpoint-{lost[0]}"
    resumed = run(tiny_model, tmp_path / "b", None, server, str(folder), train_dataset=data(names), **saving)
    returned = [names[index] for index in _returned(whole, lost[0])][
        :4
    ]  # as many as oversample adds to the first batch
    assert resumed.prompts[2 : 2 + len(returned)] == returned, "after the two of TRL's own batch"


def _returned(trainer: Spy, step: int) -> list[int]:
    path = Path(trainer.args.output_dir) / f"checkpoint-{step}" / "sampling.json"
    found: list[int] = json.loads(path.read_text())["stream"]["returned"]
    return found


def test_a_second_run_of_the_same_trainer_begins_anew(tiny_model: str, tmp_path: Path) -> None:
    trainer = run(tiny_model, tmp_path, oversample=2.0, max_steps=3)
    first, trainer.prompts = trainer.prompts, []
    trainer.train()
    assert trainer.prompts == first
