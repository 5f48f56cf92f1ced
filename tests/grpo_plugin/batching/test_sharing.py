"""Whether a prompt is computed once: what that saves against the keys and values that are copied for it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from grpo_plugin.batching.plan import PackedLayout, Rows
from grpo_plugin.batching.sharing import KeyCost


def shared(prompt: int, completions: list[int], keys: KeyCost, attention: float = 0.0) -> list[list[int]]:
    """The completions of rows of one prompt, by the prompts that are computed."""
    count = len(completions)
    rows = Rows(np.full(count, prompt), np.array(completions), np.zeros(count, dtype=np.int64), np.zeros(count))
    families = PackedLayout(attention, shares=True, keys=keys).families(rows, range(count))
    return sorted(sorted(completions[row] for row in family) for family in families)


FREE = KeyCost(time=0.0, memory=0.0)
DEAR = KeyCost(time=0.1, memory=0.0)


def test_where_keys_cost_nothing_whatever_has_a_common_token_is_shared() -> None:
    assert shared(2, [9, 9], FREE) == [[9, 9]]
    assert shared(1, [9, 9], FREE) == [[9], [9]], "the last token begins each completion"
    assert shared(2, [9], FREE) == [[9]]


def test_a_prompt_is_shared_if_the_tokens_that_it_saves_are_more_than_its_keys_cost() -> None:
    # A prefix of 10 tokens, 4 rows: 30 tokens are saved, and 5 × 10 keys of the prompt are copied beside the rows' own.
    # At a tenth of a token each that is 5 and 4 × 6.2 for rows of 61 tokens: 29.8. With 62 tokens it is 30.2.
    assert shared(11, [61] * 4, DEAR) == [[61] * 4]
    assert shared(11, [62] * 4, DEAR) == [[62], [62], [62], [62]]
    # As many saved with a prefix of 3 × 10 and 2 rows.
    assert shared(31, [61] * 2, DEAR) == [[61, 61]]


def test_memory_counts_as_time_does() -> None:
    assert shared(11, [62] * 4, KeyCost(time=0.0, memory=0.1)) == [[62]] * 4
    assert shared(11, [61] * 4, KeyCost(time=0.0, memory=0.1)) == [[61] * 4]


def test_a_row_whose_own_keys_cost_more_than_the_prompt_is_computed_alone() -> None:
    # A row of 101 tokens and 10 of the prompt: 11.1 for copies, 10 saved. The others share.
    assert shared(11, [5, 5, 100, 5], DEAR) == [[5, 5, 5], [100]]


def test_attention_among_the_prompts_own_tokens_is_saved_as_well() -> None:
    assert shared(11, [100] * 4, DEAR) == [[100]] * 4
    assert shared(11, [100] * 4, DEAR, attention=0.1) == [[100] * 4]


@pytest.mark.parametrize("seed", range(5))
def test_more_rows_of_a_prompt_never_end_what_fewer_of_them_shared(seed: int) -> None:
    draw = np.random.default_rng(seed)
    completions = np.clip(np.exp(draw.normal(4, 1.2, 8)), 1, 4000).astype(int).tolist()
    for prompt, some in itertools.product((3, 12, 60), range(2, 8)):
        few = {row for family in shared(prompt, completions[:some], DEAR) if len(family) > 1 for row in family}
        all_of_them = {row for family in shared(prompt, completions, DEAR) if len(family) > 1 for row in family}
        assert few <= all_of_them


def test_keys_cost_what_their_bytes_take_to_move_and_to_keep_beside_a_tokens_products() -> None:
    # Qwen2.5-0.5B, 2 key heads of 64: 64 × 128 bytes, times 160, over 6 × (4 × 896² + 3 × 896 × 4864) operations.
    found = KeyCost.of(hidden=896, intermediate=4864, keys=128, device="cuda")
    assert found.time == pytest.approx(64 * 128 * 160 / (6 * (4 * 896**2 + 3 * 896 * 4864)))
    assert found.memory == pytest.approx(256 / (8 * 896 + 4 * 4864 + 256))
    assert KeyCost.of(896, 4864, 896, "cuda").time == pytest.approx(7 * found.time), "as many key heads as query heads"
