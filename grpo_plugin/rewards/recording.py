"""What was trained on, recorded: whole groups with their scores, rewards, advantages, lengths and what was dropped.

Owns the way from a generation's rows to records. The files are the reward server's record parts
(`reward_server.observability.records`), in the folder `records` of the run. Knows nothing of TRL or of ranks: rank 0
hands in the rows of all of them.

Legend: R rows of the global batch, G completions of a group, S reward functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_server.errors import ConfigError
from reward_server.observability.records import Records, records_in
from reward_server.types import Group, GroupScores, Score, ScorerScores, Status

FOLDER = "records"


@dataclass(frozen=True)
class Rows:
    """The R rows of a generation: what was sampled, what each of S reward functions gave (NaN for none), and its use.

    `failures_R` are the messages of failed scores by reward function; a score without a number and without a message
    was not applicable.
    """

    prompts_R: Sequence[Any]
    completions_R: Sequence[Any]
    columns_R: Sequence[Mapping[str, Any]]
    scores_SR: Mapping[str, Sequence[float]]
    weights_S: Sequence[float]
    failures_R: Sequence[Mapping[str, Score]]
    advantages_R: Sequence[float]
    lengths_R: Sequence[int]
    truncated_R: Sequence[bool]
    dropped_R: Sequence[bool]


def share_of(told: str | None) -> float:
    """The share of groups that `record_rewards` asks for: 'all', or above 0 and up to 1. Raises ConfigError."""
    if told is None:
        return 0.0
    try:
        share = 1.0 if told == "all" else float(told)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigError(f"record_rewards is 'all' or a share of the groups above 0 and up to 1, not {told!r}")
    return share


class RewardRecords:
    """The records of one run, written by a thread of rank 0. A full disk costs records, never a step."""

    def __init__(self, output_dir: Path, share: float, run_id: str):
        """Makes the folder. Raises ConfigError if it cannot be written."""
        self._records: Records = records_in(output_dir / FOLDER, share)
        self._run_id = run_id

    def offer(self, rows: Rows, step: int, group_size: int, config_digest: str) -> None:
        """Records the whole groups of a generation. `step` counts optimizer steps from 0."""
        for number, (group, scores, training) in enumerate(groups_of(rows, group_size, config_digest)):
            named = Group(
                group.prompt, group.completions, group.columns, self._run_id, step, f"{self._run_id}/{step}-{number}"
            )
            texts = sum(len(str(content)) for content in (group.prompt, *group.contents()))
            self._records.offer(named, scores, texts, training)

    def close(self) -> None:
        self._records.close()


def groups_of(
    rows: Rows, group_size: int, config_digest: str
) -> Iterator[tuple[Group, GroupScores, dict[str, Sequence[Any]]]]:
    """Each group of the rows, its scores, and what training made of its completions."""
    for start in range(0, len(rows.prompts_R), group_size):
        part = slice(start, start + group_size)
        group = Group.of_rows(rows.prompts_R[part], rows.completions_R[part], None, rows.columns_R[part])
        scorers = tuple(
            ScorerScores(name, "", weight, tuple(_scores(name, scores_R[part], rows.failures_R[part])))
            for (name, scores_R), weight in zip(rows.scores_SR.items(), rows.weights_S, strict=True)
        )
        training = {
            "advantage": rows.advantages_R[part],
            "length": rows.lengths_R[part],
            "truncated": rows.truncated_R[part],
            "dropped": rows.dropped_R[part],
        }
        yield group, GroupScores("", scorers, config_digest), training


def _scores(name: str, values_G: Sequence[float], failures_G: Sequence[Mapping[str, Score]]) -> Iterator[Score]:
    for value, failures in zip(values_G, failures_G, strict=True):
        if name in failures:
            yield failures[name]
        else:
            yield Score(Status.NOT_APPLICABLE) if math.isnan(value) else Score(Status.OK, value)
