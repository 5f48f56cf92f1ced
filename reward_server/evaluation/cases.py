"""Cases: tests of a reward as data. One case is a prompt, completions, columns and what is expected of the scores.

Owns the format of case files (YAML or JSONL) and the messages about what is wrong in one. Knows nothing of scoring.

    - name: a right answer in a box earns both
      prompt: What is 2 + 2?
      completions: ['It is \\boxed{4}.', 'It is five.']
      columns: {answer: "4"}
      expect:
        reward: [1.2, {max: 0.2}]
        correct: [1, 0]
        better: [0, 1]
      labels: [5, 1]                  # what people say of the completions, if they have been asked
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reward_server.errors import InvalidGroupError
from reward_server.evaluation.expectations import Expectation, better_of, expectation_of
from reward_server.scorers.loading import did_you_mean
from reward_server.types import Completion, Content, Group

REWARD = "reward"
_KEYS = ("name", "prompt", "completion", "completions", "columns", "expect", "labels")


@dataclass(frozen=True)
class Case:
    """One case. `expected` has what is expected by scorer name, `reward` for the weighted sum; `labels` are G long."""

    where: str
    name: str
    group: Group
    expected: tuple[tuple[str, Expectation], ...]
    labels: tuple[float, ...] | None


def read_cases(paths: Sequence[Path]) -> list[Case]:
    """The cases of all files. Raises InvalidGroupError, naming file and case, for what cannot be understood."""
    cases = [case for path in paths for case in _cases_of(path)]
    if not cases:
        raise InvalidGroupError(f"{', '.join(map(str, paths))}: there is no case in it")
    return cases


def _cases_of(path: Path) -> Iterator[Case]:
    for index, row in enumerate(_rows(path)):
        name = row.get("name", f"case {index}") if isinstance(row, Mapping) else f"case {index}"
        yield _case(row, f"{path}::{name}", str(name))


def _rows(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidGroupError(f"cannot read {path}: {error}") from error
    try:
        if path.suffix in (".jsonl", ".ndjson"):
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        rows = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InvalidGroupError(f"{path} is neither YAML nor JSONL (by its suffix): {error}") from error
    if rows is None:
        return []
    if not isinstance(rows, list):
        raise InvalidGroupError(f"{path} must hold a list of cases, not {rows!r:.80}; begin each case with `- name:`")
    return rows


def _case(row: Any, where: str, name: str) -> Case:
    if not isinstance(row, Mapping):
        raise InvalidGroupError(f"{where} must be a mapping with prompt, completion and expect, not {row!r:.80}")
    for key in row:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS) or ";"
            raise InvalidGroupError(f"{where}: unknown key {key!r}{hint} columns of the dataset go under `columns`")
    completions = _completions(row, where)
    expected = _expected(row.get("expect"), len(completions), f"{where}.expect")
    labels = _labels(row.get("labels"), len(completions), f"{where}.labels")
    names = dict.fromkeys(name for name, _ in expected)
    group = Group(
        _content(row.get("prompt"), f"{where}.prompt"),
        tuple(Completion(content) for content in completions),
        _mapping(row.get("columns", {}), f"{where}.columns"),
        run_id="test",
        group_id=where,
        scorers=() if REWARD in names or labels is not None else tuple(names),  # only what something is expected of
    )
    if not expected and labels is None:
        raise InvalidGroupError(f"{where} expects nothing: give it `expect`, or `labels`")
    return Case(where, name, group, expected, labels)


def _completions(row: Mapping[str, Any], where: str) -> list[Content]:
    if ("completion" in row) == ("completions" in row):
        raise InvalidGroupError(f"{where} needs either `completion` or a list `completions`")
    if "completion" in row:
        return [_content(row["completion"], f"{where}.completion")]
    told = row["completions"]
    if not isinstance(told, list) or not told:
        raise InvalidGroupError(f"{where}.completions must be a list that is not empty, not {told!r:.80}")
    return [_content(content, f"{where}.completions[{index}]") for index, content in enumerate(told)]


def _content(told: Any, where: str) -> Content:
    is_conversation = isinstance(told, list) and bool(told) and all(isinstance(message, dict) for message in told)
    if not isinstance(told, str) and not is_conversation:
        raise InvalidGroupError(f"{where} must be text (quote it if YAML reads a number) or messages, not {told!r:.80}")
    return told


def _mapping(told: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(told, Mapping) or not all(isinstance(name, str) for name in told):
        raise InvalidGroupError(f"{where} must be a mapping from column names to values, not {told!r:.80}")
    return told


def _expected(told: Any, completions: int, where: str) -> tuple[tuple[str, Expectation], ...]:
    found: list[tuple[str, Expectation]] = []
    for name, value in _mapping({} if told is None else told, where).items():
        if name == "better":
            found.append((REWARD, better_of(value, completions, f"{where}.better")))
        else:
            found.append((name, expectation_of(value, completions, f"{where}.{name}")))
    return tuple(found)


def _labels(told: Any, completions: int, where: str) -> tuple[float, ...] | None:
    if told is None:
        return None
    labels = told if isinstance(told, list) else [told]
    numbers = [label for label in labels if isinstance(label, (int, float)) and not isinstance(label, bool)]
    if len(numbers) != len(labels) or len(labels) != completions:
        raise InvalidGroupError(
            f"{where} must hold a number for each of the {completions} completions, not {told!r:.80}"
        )
    return tuple(map(float, numbers))
