"""An optimizer step's rows, regrouped: what is trimmed, what moves between ranks, what each micro-batch weighs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grpo_plugin.batching.metrics import StepMetrics
from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.rows import MICRO_BATCH_STATS, MicroBatchStats, StepRows, trim, trimmed
from grpo_plugin.rewards.survivors import KEPT, ROW_WEIGHT, ROWS, SURVIVORS
from tests.support.ranks import on_ranks

ONE = Ranks(0, 1, lambda value: value)


def batch(*lengths: tuple[int, int], advantages: list[float] | None = None, first: int = 10) -> dict[str, Any]:
    """TRL's micro-batch of rows of (prompt, completion) tokens: row n's tokens are first + n, padded as TRL pads."""
    prompts, completions = max(p for p, _ in lengths), max(c for _, c in lengths)
    made = {"prompt_ids": torch.zeros((len(lengths), prompts), dtype=torch.int64)}
    made["completion_ids"] = torch.zeros((len(lengths), completions), dtype=torch.int64)
    made["prompt_mask"], made["completion_mask"] = (torch.zeros_like(value) for value in made.values())
    for row, (prompt, completion) in enumerate(lengths):
        for name, span in (("prompt", slice(prompts - prompt, None)), ("completion", slice(0, completion))):
            made[f"{name}_ids"][row, span] = first + row
            made[f"{name}_mask"][row, span] = 1
    made["advantages"] = torch.tensor(advantages or [1.0] * len(lengths))
    made["old_per_token_logps"] = -made["completion_ids"].float()
    return {**made, "num_items_in_batch": made["completion_mask"].sum()}


def test_a_micro_batch_is_as_narrow_as_its_rows_allow_and_never_nothing() -> None:
    fields = {name: value for name, value in batch((3, 5), (1, 2)).items() if name != "num_items_in_batch"}
    one = {name: value[1:] for name, value in fields.items()}
    assert {name: value.shape[1:] for name, value in trim(one).items()} == {
        **dict.fromkeys(("prompt_ids", "prompt_mask"), (1,)),
        **dict.fromkeys(("completion_ids", "completion_mask", "old_per_token_logps"), (2,)),
        "advantages": (),
    }
    assert trim(one, multiple=4)["completion_ids"].tolist() == [[11, 11, 0, 0]]
    assert trim(one, multiple=4)["prompt_ids"].tolist() == [[0, 0, 0, 11]]
    one["completion_mask"] = torch.zeros_like(one["completion_mask"])
    assert trim(one)["completion_ids"].shape == (1, 1)


def test_ratios_of_one_value_a_row_keep_their_shape() -> None:
    made = {**batch((2, 5), (2, 3)), "importance_sampling_ratio": torch.ones(2, 1)}
    assert trimmed({name: v if v.dim() == 0 else v[1:] for name, v in made.items()}, None)[
        "importance_sampling_ratio"
    ].shape == (1, 1)


@pytest.mark.parametrize("more", [{"pixel_values": torch.ones(2, 3)}, {"num_images": [1, 1]}])
def test_what_is_not_known_is_left_alone(more: dict[str, Any]) -> None:
    made = {**batch((2, 3), (2, 3)), **more}
    assert StepRows.of([made], ONE) is None
    assert trimmed(made, None) is made


def test_advantages_a_token_and_empty_prompts_are_left_alone() -> None:
    made = batch((2, 3), (2, 3))
    assert StepRows.of([{**made, "advantages": torch.ones(2, 3)}], ONE) is None
    made["prompt_mask"][1] = 0
    assert StepRows.of([made], ONE) is None


def test_what_one_rank_does_not_know_is_left_alone_by_all() -> None:
    def act(ranks: Ranks) -> Any:
        more = {"pixel_values": torch.ones(2, 3)} if ranks.rank else {}
        return StepRows.of([{**batch((2, 3), (2, 3)), **more}], ranks)

    assert on_ranks(2, act) == [None, None]


def test_weights_keep_trls_denominators() -> None:
    # Two micro-batches of B = 2; rows 0, 1, 3 train, in micro-batches of 2 and 1: b / B is 1 and 1/2.
    step_rows = StepRows.of([batch((2, 3), (2, 1)), batch((2, 2), (2, 3), first=20)], ONE)
    assert step_rows is not None
    found = step_rows.micro_batches((((0, 3), (1,)),), ONE, None)
    assert [made[ROW_WEIGHT] for made in found] == [1.0, 0.5]
    assert [made["completion_ids"][:, 0].tolist() for made in found] == [[10, 21], [11]]
    assert [made["completion_ids"].shape[1] for made in found] == [3, 1]
    assert [made[MICRO_BATCH_STATS] for made in found] == [
        MicroBatchStats(6, 2, 0, 2, False),
        MicroBatchStats(1, 1, 0, 1, True),
    ]
    assert [made[ROWS] for made in found] == [4, 0], "what the step is made of is told once"
    assert all(int(made["num_items_in_batch"]) == 4 for made in found), "TRL's, of the generation"


def test_survivors_weights_multiply_and_their_count_is_told_once() -> None:
    made = {**batch((2, 3), (2, 1)), KEPT: torch.tensor([1.0, 0.0]), ROW_WEIGHT: 2.0, SURVIVORS: 1.0}
    step_rows = StepRows.of([made], ONE)
    assert step_rows is not None
    (only,) = step_rows.micro_batches((((0,),),), ONE, None)
    assert only[ROW_WEIGHT] == 2.0 * 1 / 2
    assert only[SURVIVORS] == 1.0


def test_rows_that_cannot_have_a_gradient_are_no_members() -> None:
    made = batch((2, 3), (2, 3), (2, 0), advantages=[0.0, 0.5, 1.0])
    step_rows = StepRows.of([made], ONE)
    assert step_rows is not None
    assert step_rows.table.members(prune=True) == [1]
    assert step_rows.table.members(prune=False) == [0, 1]


def test_equal_prompts_have_one_number_on_every_rank() -> None:
    def act(ranks: Ranks) -> Any:
        made = batch((3, 2), (3, 1), first=10) if ranks.rank == 0 else batch((5, 2), (3, 1), first=9)
        step_rows = StepRows.of([made], ranks)
        assert step_rows is not None
        return step_rows.table.rows.prompt_R.tolist()

    one, two = on_ranks(2, act)
    assert one == two
    assert one[0] == one[3] != one[1], "three tokens 10 on both ranks, padded differently"


def test_rows_move_with_all_they_have_and_a_rank_without_work_gets_a_filler() -> None:
    def act(ranks: Ranks) -> Any:
        made = batch((2, 4), (2, 1), first=10) if ranks.rank == 0 else batch((3, 1), (1, 2), first=20)
        step_rows = StepRows.of([made], ranks)
        assert step_rows is not None
        plan = (((0, 3), ()), ((2,), (1,)))
        return step_rows.micro_batches(plan, ranks, None)

    (first, filler), (staying, arrived) = on_ranks(2, act)
    assert first["completion_ids"].tolist() == [[10, 10, 10, 10], [21, 21, 0, 0]]
    assert first["old_per_token_logps"][1].tolist() == [-21.0, -21.0, 0.0, 0.0]
    assert first["prompt_mask"].tolist() == [[1, 1], [0, 1]]
    assert filler["completion_mask"].tolist() == [[0]]
    assert filler["advantages"].tolist() == [0.0]
    assert filler[ROW_WEIGHT] == 0.0
    assert staying["completion_ids"].tolist() == [[20]]
    assert arrived["completion_ids"].tolist() == [[11]]
    assert filler[MICRO_BATCH_STATS] == arrived[MICRO_BATCH_STATS] == MicroBatchStats(1, 1, 1, 1, True)


def test_metrics_of_a_step_are_means_over_its_tokens_and_rows_minima_and_maxima_as_they_are() -> None:
    low_high = {"clip_ratio/low_min": [], "clip_ratio/high_max": []}
    metrics: dict[str, list[float]] = {"reward": [1.0], "entropy": [], **low_high}
    step = StepMetrics()
    first, second = (
        (2.0, 0.1, 0.2, MicroBatchStats(30, 3, 0, 3, False)),
        (4.0, 0.3, 0.9, MicroBatchStats(10, 1, 1, 1, True)),
    )
    for entropy, low, high, stats in (first, second):
        with step.collected(metrics, stats, sequence_level=False):
            metrics["entropy"].append(entropy)
            metrics["clip_ratio/low_min"].append(low)
            metrics["clip_ratio/high_max"].append(high)
    assert metrics == {"reward": [1.0], "entropy": [2.5], "clip_ratio/low_min": [0.1], "clip_ratio/high_max": [0.9]}


def test_a_filler_does_not_count_in_means_over_rows() -> None:
    metrics: dict[str, list[float]] = {"clip_ratio/low_mean": [], "vespo/phi_seq_mean": []}
    with StepMetrics().collected(metrics, MicroBatchStats(8, 1, 1, 1, True), sequence_level=True):
        metrics["clip_ratio/low_mean"].append(0.5)  # (1 + 0) / 2 rows, the filler's 0 among them
        metrics["vespo/phi_seq_mean"].append(2.0)  # (3 + 1) / 2 rows, the filler's 1 among them
    assert metrics == {"clip_ratio/low_mean": [1.0], "vespo/phi_seq_mean": [3.0]}


def test_a_step_of_fillers_alone_has_no_metrics() -> None:
    metrics: dict[str, list[float]] = {"entropy": []}
    with StepMetrics().collected(metrics, MicroBatchStats(0, 0, 2, 1, True), sequence_level=False):
        metrics["entropy"].append(0.0)
    assert metrics == {"entropy": []}
