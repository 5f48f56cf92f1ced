"""`reward-server check` and `reward-server score`: score groups, and print the scores as a table or as JSON.

Owns the reading of groups and the printing of scores. A configuration is scored with in this process, an endpoint by a
client.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from reward_server.client import RewardClient
from reward_server.config import ServerConfig
from reward_server.errors import DeadlineError, InvalidGroupError
from reward_server.scorers.base import text_of
from reward_server.serving.scorer_set import ScorerSet
from reward_server.serving.security import Security
from reward_server.serving.selftest import failing_on, failures_of, made_up
from reward_server.types import Completion, Content, Group, GroupScores, Score, ScorerInfo, Status

_WIDEST_COMPLETION = 48
_CONNECT_TIMEOUT_S = 10.0


def check(config: ServerConfig, sample: str | None) -> int:
    """Reads credentials, loads every scorer, scores a sample and prints the result. Returns 1 if a score failed."""
    Security(config)  # raises for files that `serve` could not use
    return asyncio.run(_check(config.model_copy(update={"workers": 1}), sample))


def score(source: ServerConfig | RewardClient, groups: Sequence[Group], *, as_json: bool, timeout_s: float) -> int:
    """Scores groups in this process or by a client, and prints the scores. Returns 1 if a score failed."""
    if isinstance(source, RewardClient):
        answers = _score_at(source, groups, timeout_s)
    else:
        answers = asyncio.run(_score_here(source, groups, timeout_s))
    for group, scores in zip(groups, answers, strict=True):
        print(json.dumps(_as_dict(group, scores)) if as_json else "\n".join(table(group, scores)))
    return int(any(failures_of(scores) for scores in answers))


def describe(info: ScorerInfo) -> str:
    """A scorer in one line."""
    facts = [info.kind, f"version {info.version}", f"weight {info.weight:g}"]
    facts += ["deterministic"] * info.deterministic + ["sees whole groups"] * info.group_aware
    facts += [f"needs {', '.join(info.required_columns)}"] * bool(info.required_columns)
    return f"{info.name}: {'; '.join(facts)}"


# -------------------------------------------------------------------------------------------------------------- groups


def groups_of(
    prompt: str, completions: Sequence[str], columns: Sequence[str], path: str | None, scorers: Sequence[str]
) -> list[Group]:
    """The groups of a command line: one group from its options, or the rows of a file. Raises InvalidGroupError."""
    if path is None:
        if not completions:
            raise InvalidGroupError("there is nothing to score: give --completion TEXT or --input FILE")
        row = {**dict(_column(text) for text in columns), "prompt": prompt, "completions": list(completions)}
        return [group_of_row(row, "the group", "0", scorers)]
    if completions or columns:
        raise InvalidGroupError(
            "the rows of --input have their own completions and columns: leave out --completion and --column"
        )
    rows = list(rows_of(path))
    if not rows:
        raise InvalidGroupError(f"{path} holds no rows")
    return [group_of_row(row, where, str(index), scorers) for index, (where, row) in enumerate(rows)]


def group_of_row(row: Any, where: str, group_id: str, scorers: Sequence[str] = ()) -> Group:
    """The group in a row {"prompt": …, "completions": […], columns…}, whose contents are text or lists of messages.

    `where` begins the message of an InvalidGroupError.
    """
    if not isinstance(row, dict) or "prompt" not in row or not isinstance(row.get("completions"), list):
        raise InvalidGroupError(f'{where} must be an object with "prompt" and a list "completions", not {row!r:.80}')
    if not row["completions"]:
        raise InvalidGroupError(f'{where}: "completions" is empty')
    for content in (row["prompt"], *row["completions"]):
        _check_content(content, where)
    columns = {name: value for name, value in row.items() if name not in ("prompt", "completions")}
    completions = tuple(Completion(content) for content in row["completions"])
    return Group(row["prompt"], completions, columns, run_id="command line", group_id=group_id, scorers=tuple(scorers))


def _check_content(content: Any, where: str) -> None:
    is_conversation = isinstance(content, list) and all(isinstance(message, dict) for message in content)
    if not isinstance(content, str) and not is_conversation:
        raise InvalidGroupError(f"{where}: {content!r:.80} is neither text nor a list of messages")


def _column(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidGroupError(f"--column {text!r} must have the form NAME=JSON, such as answer=42 or answer='\"x\"'")
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise InvalidGroupError(
            f"--column {name}: {value!r} is not JSON ({error}); text goes in quotes: {name}='{json.dumps(value)}'"
        ) from error


def rows_of(path: str) -> Iterator[tuple[str, Any]]:
    """Rows of a JSONL file, or of a JSON file that holds one object or a list of them; each with where it stands."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidGroupError(f"cannot read {path}: {error}") from error
    try:
        whole = json.loads(text)
    except ValueError:  # more than one document: JSONL
        yield from _lines(text, path)
        return
    rows = whole if isinstance(whole, list) else [whole]
    yield from ((f"{path}, row {index + 1}", row) for index, row in enumerate(rows))


def _lines(text: str, path: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except ValueError as error:
            raise InvalidGroupError(f"{path}, line {number} is not JSON: {error}") from error


# ------------------------------------------------------------------------------------------------------------- scoring


async def _check(config: ServerConfig, sample: str | None) -> int:
    scorers = ScorerSet(config, keep=False)
    await scorers.load()
    try:
        print(f"configuration {scorers.info.config_digest[:12]}: {len(scorers.info.scorers)} scorers are loaded")
        for info, scorer in zip(scorers.info.scorers, scorers.scorers, strict=True):
            print(f"  {describe(info)}; runs in: {scorer.place.value}")
        if sample is None:
            return await _score_made_up_sample(scorers)
        return await _score_sample(scorers, sample_of_file(sample), sample)
    finally:
        _print_notes(scorers)  # after the sample, since some are known only once something was scored
        await scorers.close()


def _print_notes(scorers: ScorerSet) -> None:
    notes = [f"  {scorer.name}: {note}" for scorer in scorers.scorers for note in scorer.notes]
    if notes:
        print("\nto know:", *notes, sep="\n")


async def _score_made_up_sample(scorers: ScorerSet) -> int:
    """Scores the sample as text, and as messages with the scorers that fail on text: some functions read only those."""
    text, messages = made_up(scorers.info.scorers, scorers.scorers)
    fail = await failing_on(scorers, text)
    passing = tuple(info.name for info in scorers.info.scorers if info.name not in fail)
    if passing:
        await _score_sample(scorers, dataclasses.replace(text, scorers=passing), "a made-up sample")
    if not fail:
        return 0
    code = await _score_sample(scorers, dataclasses.replace(messages, scorers=fail), "a made-up sample of messages")
    if code:
        print(
            "if the made-up sample does not fit your scorers, give a row of your data: --sample FILE", file=sys.stderr
        )
    return code


async def _score_sample(scorers: ScorerSet, group: Group, what: str) -> int:
    scorers.admit(group)
    scores = await scorers.score(group)
    print(f"\nscores of {what}:", *table(group, scores), sep="\n")
    if failures := failures_of(scores):
        print(f"error: {failures[0]}", file=sys.stderr)
    return int(bool(failures))


def sample_of_file(path: str) -> Group:
    """The group of the file's first row. Raises InvalidGroupError."""
    for where, row in rows_of(path):
        return group_of_row(row, where, "sample")
    raise InvalidGroupError(f"{path} holds no rows")


async def _score_here(config: ServerConfig, groups: Sequence[Group], timeout_s: float) -> list[GroupScores]:
    scorers = ScorerSet(config)
    await scorers.load()
    try:
        for group in groups:
            scorers.admit(group)
        async with asyncio.timeout(timeout_s):
            return await asyncio.gather(*(scorers.score(group) for group in groups))
    except TimeoutError as error:
        raise DeadlineError(
            f"the {len(groups)} groups were not scored within {timeout_s:g} s; see --timeout-s"
        ) from error
    finally:
        await scorers.close()


def _score_at(client: RewardClient, groups: Sequence[Group], timeout_s: float) -> list[GroupScores]:
    with client:
        client.info(min(timeout_s, _CONNECT_TIMEOUT_S))
        return [pending.result() for pending in client.submit_all(groups, timeout_s=timeout_s)]


# ------------------------------------------------------------------------------------------------------------ printing


def table(group: Group, scores: GroupScores) -> list[str]:
    """An aligned table of completions × scorers with the rewards, and below it a line for each different failure."""
    rewards = scores.rewards()
    rows = [["", "completion", *(scorer.name for scorer in scores.scorers), "reward"]]
    for index, content in enumerate(group.contents()):
        cells = [_cell(scorer.scores[index]) for scorer in scores.scorers]
        rows.append([str(index), _short(content), *cells, _number(rewards[index])])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_aligned(row, widths) for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:], *failures_of(scores)]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    number, completion, *cells = row
    left = [number.rjust(widths[0]), completion.ljust(widths[1])]
    return "  ".join([*left, *(cell.rjust(width) for cell, width in zip(cells, widths[2:], strict=True))])


def _cell(score: Score) -> str:
    return _number(score.value) if score.status is Status.OK else score.status.name


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _short(content: Content) -> str:
    text = " ".join(text_of(content).split())
    return text if len(text) <= _WIDEST_COMPLETION else f"{text[: _WIDEST_COMPLETION - 1]}…"


def _as_dict(group: Group, scores: GroupScores) -> dict[str, Any]:
    return {
        "group_id": group.group_id,
        "prompt": group.prompt,
        "completions": group.contents(),
        "rewards": scores.rewards(),
        "scorers": {
            scorer.name: {
                "weight": scorer.weight,
                "version": scorer.version,
                "scores": [score.value for score in scorer.scores],
                "statuses": [score.status.name for score in scorer.scores],
                "messages": [score.message for score in scorer.scores],
                "metrics": dict(scorer.metrics),
                "extra": dict(scorer.extra),
            }
            for scorer in scores.scorers
        },
        "config_digest": scores.config_digest,
    }
