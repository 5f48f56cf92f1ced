"""One completion with all that belongs to it, so that rows can be left out, replaced and moved between ranks.

Owns the translation between what TRL's `_generate` returns, a column for each of its fields, and rows. Knows nothing of
why a row moves.

Legend: N rows on this rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(slots=True)
class Sampled:
    """A completion as `_generate` returned it (TRL 1.16, grpo_trainer.py:2322); None for what its call did not have."""

    row: dict[str, Any]  # of the dataset
    prompt: Any  # what was generated for: the row's, with its images
    prompt_ids: list[int]
    completion_ids: list[int]
    tool_mask: list[int] | None
    completion: Any
    sampler_log_probs: list[float] | None
    extra: Mapping[str, Any]  # what a rollout added
    images: Any
    tool_images: Any
    logged: dict[str, Any] = field(default_factory=dict)  # what reward functions logged by `log_extra`
    old_log_probs: torch.Tensor | None = None  # of the policy that sampled, on the host, one a token of the completion

    def columns(self) -> dict[str, Any]:
        """The row as TRL hands it to reward functions: with what the rollout added."""
        return {**self.row, **self.extra}


def rows_of(rows_N: Sequence[dict[str, Any]], prompts_N: Sequence[Any], generated: Any) -> list[Sampled]:
    """The rows of what `_generate` returned for these prompts."""
    prompt_ids, completion_ids, tool_mask, completions, log_probs, extra, images, tool_images = generated
    return [
        Sampled(
            row,
            prompts_N[index],
            prompt_ids[index],
            completion_ids[index],
            _at(tool_mask, index),
            completions[index],
            _at(log_probs, index),
            _added(extra, index),
            _at(images, index),
            _at(tool_images, index),
        )
        for index, row in enumerate(rows_N)
    ]


def generated_of(rows_N: Sequence[Sampled]) -> Any:
    """What `_generate` would have returned for these rows."""
    return (
        [row.prompt_ids for row in rows_N],
        [row.completion_ids for row in rows_N],
        _column([row.tool_mask for row in rows_N]),
        [row.completion for row in rows_N],
        _column([row.sampler_log_probs for row in rows_N]),
        {
            name: [row.extra.get(name) for row in rows_N]
            for name in dict.fromkeys(n for row in rows_N for n in row.extra)
        },
        _column([row.images for row in rows_N]),
        _column([row.tool_images for row in rows_N]) or [],
    )


def with_old_log_probs(log_probs_NT: torch.Tensor, rows_N: Sequence[Sampled]) -> torch.Tensor:
    """The same, with those of the policy that sampled in the rows that bring them; completions begin on the left."""
    changed_NT = log_probs_NT.clone()
    for row, sampled in enumerate(rows_N):
        if sampled.old_log_probs is not None:
            changed_NT[row, : len(sampled.old_log_probs)] = sampled.old_log_probs.to(changed_NT)
    return changed_NT


def _at(values: Sequence[Any] | None, index: int) -> Any:
    return values[index] if values else None


def _added(extra: Mapping[str, Any], index: int) -> dict[str, Any]:
    """What a rollout added to one row: a list has a value a row, all else is one value for all of them."""
    return {
        name: values[index] if isinstance(values, list) else values
        for name, values in extra.items()
        if not isinstance(values, list) or index < len(values)
    }


def _column(values_N: list[Any]) -> list[Any] | None:
    """None where no row has a value."""
    return None if all(value is None for value in values_N) else values_N
