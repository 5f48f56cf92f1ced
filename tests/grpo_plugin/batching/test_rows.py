"""An optimizer step's rows, regrouped: what is trimmed, what moves between ranks, what each micro-batch weighs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from grpo_plugin.batching.ranks import Ranks
from grpo_plugin.batching.rows import MICRO_BATCH_STATS, MicroBatchStats, StepRows, trimmed
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
    made = {name: value for name, value in batch((3, 5), (1, 2), (2, 0)).items() if name != "num_items_in_batch"}
    one, none = ({name: value[row : row + 1] for name, value in made.items()} for row in (1, 2))
    (found, nothing), rows = trimmed([one, none], None)
    assert {name: value.shape[1:] for name, value in found.items()} == {
        **dict.fromkeys(("prompt_ids", "prompt_mask"), (1,)),
        **dict.fromkeys(("completion_ids", "completion_mask", "old_per_token_logps"), (2,)),
        "advantages": (),
    }
    assert nothing["completion_ids"].tolist() == [[0, 0]]
    assert rows is not None
    assert (rows.prompt_tokens_R.tolist(), rows.completion_tokens_R.tolist()) == ([1, 2], [2, 0])
    (wider, _), _ = trimmed([one, none], 4)
    assert wider["completion_ids"].tolist() == [[11, 11, 0, 0]]
    assert wider["prompt_ids"].tolist() == [[0, 0, 0, 11]]


def test_completions_of_a_micro_batch_are_two_wide_at_least_since_trl_takes_width_1_for_a_value_a_row() -> None:
    made = batch((2, 1), (2, 1))
    assert trimmed([made], None)[0][0]["completion_mask"].tolist() == [[1, 0], [1, 0]]
    step_rows = StepRows.of([made], ONE)
    assert step_rows is not None
    for found in step_rows.micro_batches((((0, 1), ()),), ONE, None):
        assert found["completion_ids"].shape[1] == found["old_per_token_logps"].shape[1] == 2


def test_the_ratio_of_a_whole_completion_is_told_by_its_name_also_where_every_completion_has_one_token() -> None:
    # On rank 0 every completion has one token, so that ratios of tokens would have the same shape, (N, 1).
    def act(ranks: Ranks) -> Any:
        made = batch((2, 1), (2, 1)) if ranks.rank == 0 else batch((2, 5), (2, 3))
        made["importance_sampling_ratio"] = torch.tensor([[0.5], [2.0]]) + ranks.rank
        assert trimmed([made], None, sequence_ratios=True)[0][0]["importance_sampling_ratio"].shape == (2, 1)
        step_rows = StepRows.of([made], ranks, sequence_ratios=True)
        assert step_rows is not None
        (found,) = step_rows.micro_batches((((0, 3),), ((1, 2),)), ranks, None)
        return found["importance_sampling_ratio"].tolist()

    assert on_ranks(2, act) == [[[0.5], [3.0]], [[2.0], [1.5]]]


def test_ratios_of_tokens_are_padded_with_1_wherever_rows_are_widened() -> None:
    def act(ranks: Ranks) -> Any:
        made = batch((2, 4), (2, 1)) if ranks.rank == 0 else batch((2, 1), (2, 2))
        made["importance_sampling_ratio"] = torch.where(made["completion_mask"] > 0, 0.5, 1.0)
        step_rows = StepRows.of([made], ranks)
        assert step_rows is not None
        batches = step_rows.micro_batches((((0, 3), ()), ((1,), (2,))), ranks, 8 if ranks.rank else None)
        return [found["importance_sampling_ratio"].tolist() for found in batches]

    (first, filler), others = on_ranks(2, act)
    assert first == [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]], "a row that came from a rank of shorter rows"
    assert filler == [[1.0, 1.0]]
    assert others == [[[0.5] + [1.0] * 7]] * 2, "rounded up to a multiple of 8"


def test_a_filler_has_ratio_1_and_no_advantage_whatever_the_row_it_is_made_of() -> None:
    made = {
        **batch((3, 4)),
        "old_per_token_logps": torch.full((1, 4), -200.0),  # exp(200) is no float32
        "ref_per_token_logps": torch.full((1, 4), 200.0),
        "sampling_per_token_logps": torch.full((1, 4), torch.nan),
        "importance_sampling_ratio": torch.full((1, 1), 7.0),
        "tool_mask": torch.zeros(1, 4, dtype=torch.int64),
        KEPT: torch.ones(1),
    }
    step_rows = StepRows.of([made], ONE, sequence_ratios=True)
    assert step_rows is not None
    _, filler = step_rows.micro_batches((((0,), ()),), ONE, None)
    for name in ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"):
        assert filler[name].tolist() == [[0.0, 0.0]], name
    assert filler["importance_sampling_ratio"].tolist() == [[1.0]]
    assert filler["completion_mask"].tolist() == [[0, 0]]
    assert (filler["advantages"].tolist(), filler[KEPT].tolist()) == ([0.0], [0.0])


@pytest.mark.parametrize("more", [{"pixel_values": torch.ones(2, 3)}, {"num_images": [1, 1]}])
def test_what_is_not_known_is_left_alone(more: dict[str, Any]) -> None:
    made = {**batch((2, 3), (2, 3)), **more}
    assert StepRows.of([made], ONE) is None
    assert trimmed([made], None) == ([made], None)


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


@pytest.mark.parametrize(
    "more", [{"tool_mask": torch.ones(2, 3, dtype=torch.int64)}, {"advantages": torch.ones(2).half()}]
)
def test_ranks_whose_rows_have_other_fields_or_types_leave_theirs_alone(more: dict[str, Any]) -> None:
    def act(ranks: Ranks) -> Any:
        return StepRows.of([{**batch((2, 3), (2, 3)), **(more if ranks.rank else {})}], ranks)

    assert on_ranks(2, act) == [None, None]


def test_weights_keep_trls_denominators() -> None:
    # Two micro-batches of B = 2; rows 0, 1, 3 train, in micro-batches of 2 and 1: b / B is 1 and 1/2.
    step_rows = StepRows.of([batch((2, 3), (2, 1)), batch((2, 2), (2, 3), first=20)], ONE)
    assert step_rows is not None
    found = step_rows.micro_batches((((0, 3), (1,)),), ONE, None)
    assert [made[ROW_WEIGHT] for made in found] == [1.0, 0.5]
    assert [made["completion_ids"][:, 0].tolist() for made in found] == [[10, 21], [11]]
    assert [made["completion_ids"].shape[1] for made in found] == [3, 2]
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
    assert filler["completion_mask"].tolist() == [[0, 0]]
    assert filler["advantages"].tolist() == [0.0]
    assert filler[ROW_WEIGHT] == 0.0
    assert staying["completion_ids"].tolist() == [[20, 0]]
    assert arrived["completion_ids"].tolist() == [[11, 0]]
    assert filler[MICRO_BATCH_STATS] == arrived[MICRO_BATCH_STATS] == MicroBatchStats(1, 1, 1, 1, True)
