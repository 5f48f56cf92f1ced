"""What a record holds of a scored group: as a line of JSON has it, and as rows, one for each completion.

Owns the names that docs/records.md documents. Knows nothing of files. `record_columns` makes the same rows for Parquet,
without a dict for each: a test compares the two.

Legend: G completions of a group, S scorers.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from reward_server.types import Completion, Group, GroupScores, ScorerScores

SCHEMA_VERSION = 1

OF_TRAINING = ("advantage", "length", "truncated", "dropped")
_OF_THE_GROUP = ("schema", "time", "run_id", "step", "group_id", "config_digest", "queued_s", "compute_s")

Training = Mapping[str, Sequence[Any]]
"""G values under some of the names OF_TRAINING."""


def record_of(group: Group, scores: GroupScores, at: float, training: Training | None = None) -> dict[str, Any]:
    """The record of a group that was scored at `at`, in seconds since the epoch."""
    record = {
        "schema": SCHEMA_VERSION,
        "time": time_of(at),
        "run_id": group.run_id,
        "step": group.step,
        "group_id": group.group_id,
        "config_digest": scores.config_digest,
        "prompt": group.prompt,
        "columns": dict(group.columns),
        "completions": [_completion(completion) for completion in group.completions],
        "rewards": scores.rewards(),
        "scorers": {scorer.name: _scorer(scorer) for scorer in scores.scorers},
        "queued_s": scores.queued_s,
        "compute_s": scores.compute_s,
    }
    return {**record, "training": dict(training)} if training else record


def time_of(at: float) -> str:
    """Seconds since the epoch in ISO 8601, to the millisecond."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="milliseconds")


def text_of(content: Any) -> str:
    """Text as it is, messages as JSON; lone surrogates, which UTF-8 cannot hold, are escaped."""
    text = content if isinstance(content, str) else json.dumps(content)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _completion(completion: Completion) -> dict[str, Any]:
    """The content, and what differs between the completions of the group."""
    described: dict[str, Any] = {"content": completion.content}
    if completion.columns:
        described["columns"] = dict(completion.columns)
    if completion.prompt is not None:
        described["prompt"] = completion.prompt
    return described


def _scorer(scorer: ScorerScores) -> dict[str, Any]:
    described: dict[str, Any] = {
        "version": scorer.version,
        "weight": scorer.weight,
        "scores": [score.value for score in scorer.scores],
        "statuses": [score.status.name for score in scorer.scores],
    }
    if any(score.message for score in scorer.scores):
        described["messages"] = [score.message for score in scorer.scores]
    if scorer.extra:
        described["extra"] = {name: list(values) for name, values in scorer.extra.items()}
    return described


# ---------------------------------------------------------------------------------------------------------------- rows


def rows_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record as rows, one for each completion."""
    return [_row(record, index, completion) for index, completion in enumerate(record["completions"])]


def _row(record: Mapping[str, Any], index: int, completion: Mapping[str, Any]) -> dict[str, Any]:
    prompt, content = completion.get("prompt", record["prompt"]), completion["content"]
    training = record.get("training", {})
    return {
        **{name: record[name] for name in _OF_THE_GROUP},
        "index": index,
        "of": len(record["completions"]),
        "prompt": text_of(prompt),
        "prompt_is_messages": not isinstance(prompt, str),
        "completion": text_of(content),
        "completion_is_messages": not isinstance(content, str),
        "columns": json.dumps({**record["columns"], **completion.get("columns", {})}),
        "reward": record["rewards"][index],
        **{name: training[name][index] if name in training else None for name in OF_TRAINING},
        "scorers": [_scorer_of_row(name, told, index) for name, told in record["scorers"].items()],
    }


def _scorer_of_row(name: str, told: Mapping[str, Any], index: int) -> dict[str, Any]:
    extra = {key: values[index] for key, values in told.get("extra", {}).items()}
    return {
        "name": name,
        "version": told["version"],
        "weight": told["weight"],
        "score": told["scores"][index],
        "status": told["statuses"][index],
        "message": told["messages"][index] if "messages" in told else "",
        "extra": json.dumps(extra) if extra else "",
    }
