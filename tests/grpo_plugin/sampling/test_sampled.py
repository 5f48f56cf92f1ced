"""What `_generate` returned comes out of rows as it went in, and rows of several calls join."""

from __future__ import annotations

from typing import Any

import torch

from grpo_plugin.sampling.sampled import generated_of, rows_of, with_old_log_probs

TEXT: Any = ([[1], [2]], [[3, 4], [5]], None, ["a", "b"], None, {}, None, [])
ROLLOUT: Any = (
    [[1], [2]],
    [[3, 4], [5]],
    [[1, 0], [1]],
    [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]],
    [[-0.5, None], [-1.0]],
    {"turns": [1, 2], "kind": "chat", "short": [9]},
    [["image"], None],
    [[], ["seen"]],
)
ROWS = [{"prompt": "p"}, {"prompt": "q"}]


def test_texts_come_back_as_they_were() -> None:
    assert generated_of(rows_of(ROWS, ["p", "q"], TEXT)) == TEXT


def test_tools_rollouts_and_images_come_back_a_value_a_row() -> None:
    made = rows_of(ROWS, ["p", "q"], ROLLOUT)
    *fields, extra, images, tool_images = generated_of(made)
    assert tuple(fields) == ROLLOUT[:5]
    assert extra == {"turns": [1, 2], "kind": ["chat", "chat"], "short": [9, None]}
    assert (images, tool_images) == ROLLOUT[6:]
    assert made[0].columns() == {"prompt": "p", "turns": 1, "kind": "chat", "short": 9}
    assert made[1].columns() == {"prompt": "q", "turns": 2, "kind": "chat"}


def test_known_log_probs_take_the_place_of_computed_ones_in_their_rows_alone() -> None:
    rows = rows_of(ROWS, ["p", "q"], TEXT)
    rows[1].old_log_probs = torch.tensor([-7.0])
    found = with_old_log_probs(torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), rows)
    assert found.tolist() == [[-1.0, -2.0], [-7.0, 0.0]]
