"""Record files of both forms as one relation: growing, turned over, torn, damaged, foreign."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reward_server.errors import ConfigError
from reward_server.observability.record_form import record_of
from reward_server.observability.record_lines import RecordLines
from reward_server.observability.record_parts import RecordParts
from reward_server.types import Group, GroupScores
from reward_server.view import filters, overview
from reward_server.view.filters import Filter, find, group_of
from reward_server.view.sources import sources_of
from reward_server.view.store import Store
from tests.support.builders import make_group, make_scores

Open = Callable[..., Store]


def scored(
    *texts: Any, step: int = 0, scores: tuple[float | None, ...] = (1.0, 0.0), **names: Any
) -> tuple[Group, GroupScores, float]:
    return make_group(texts or ("a", "b"), run_id="r", step=step, **names), make_scores(scores), time.time()


def recorded(*texts: Any, **options: Any) -> dict[str, Any]:
    return record_of(*scored(*texts, **options))


def count(store: Store) -> int:
    return int(store.query("SELECT count(*) AS n FROM completions").n[0])


def test_both_forms_of_a_run_give_the_same_rows(hacked: Path, open_store: Open) -> None:
    parts, lines = open_store(hacked / "parts"), open_store(hacked / "lines.jsonl")
    sql = 'SELECT step, group_id, "index", prompt, completion, reward, scorers, size FROM completions ORDER BY ALL'
    a, b = parts.query(sql), lines.query(sql)
    assert len(a) == 24 * 4 * 4
    assert a.drop(columns="scorers").equals(b.drop(columns="scorers"))
    assert [list(x) for x in a.scorers] == [list(x) for x in b.scorers]


def test_lines_are_seen_as_they_are_written_and_a_torn_one_when_it_is_whole(tmp_path: Path, open_store: Open) -> None:
    path = tmp_path / "records.jsonl"
    whole = json.dumps(recorded()) + "\n"
    path.write_text(whole + whole[:50])
    store = open_store(path)
    assert count(store) == 2
    assert not store.problems
    before = store.fingerprint
    with path.open("a") as file:
        file.write(whole[50:])
    store.refresh()
    assert (count(store), store.fingerprint != before) == (4, True)


def test_a_file_that_is_turned_over_is_read_once_and_forgotten_when_it_is_removed(
    tmp_path: Path, open_store: Open
) -> None:
    path = tmp_path / "records.jsonl"
    line = len(json.dumps(recorded(group_id="0"))) + 1
    sink = RecordLines(path, max_bytes=3 * line, keep=2)
    sink.write([sink.encoded(*scored(group_id="0"))])
    store = open_store(path)
    for number in range(1, 8):
        sink.write([sink.encoded(*scored(group_id=str(number)))])
        store.refresh()
    sink.close()
    # Files of three groups, two of which are kept: 3, 4, 5 and 6, 7.
    groups = store.query("SELECT DISTINCT group_id FROM completions ORDER BY ALL").group_id
    assert list(groups) == ["3", "4", "5", "6", "7"]


def test_parts_appear_and_go_while_the_store_is_open(tmp_path: Path, open_store: Open) -> None:
    folder = tmp_path / "parts"
    sink = RecordParts(folder, part_groups=1, part_s=60, max_bytes=1 << 30)
    store = open_store(folder)
    assert (count(store), filters.step_range(store)) == (0, None)
    sink.write([sink.encoded(*scored(step=3))])
    sink.write([sink.encoded(*scored(step=5))])
    store.refresh()
    assert (count(store), filters.step_range(store)) == (4, (3, 5))
    min(folder.glob("*.parquet")).unlink()  # what the writer does with the oldest; the next query finds out
    assert count(store) == 2


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("foreign.jsonl", '{"question": "2 + 2?"}\n', "line 1, is not a record of a reward server"),
        ("binary.jsonl", "\x00\x01\n", "line 1, is not a record of a reward server"),
        ("newer.jsonl", '{"schema": 99}\n', "was written by a newer version (schema 99)"),
        ("damaged.parquet", "PAR1 and no more", "is damaged or is no Parquet file"),
        ("empty.parquet", "", "is damaged or is no Parquet file"),
    ],
)
def test_a_foreign_or_damaged_file_gets_a_sentence_and_the_others_are_read(
    name: str, content: str, sentence: str, tmp_path: Path, hacked: Path, open_store: Open
) -> None:
    (tmp_path / name).write_text(content)
    store = open_store(tmp_path / name, hacked / "parts")
    (problem,) = store.problems
    assert sentence in problem
    assert problem.count(".\n") == 0
    assert count(store) == 384


def test_a_foreign_parquet_file_is_told_by_its_columns(tmp_path: Path, open_store: Open) -> None:
    from pyarrow import parquet, table  # noqa: PLC0415

    parquet.write_table(table({"question": ["2 + 2?"]}), tmp_path / "foreign.parquet")
    assert "is not a part of a reward server's records" in open_store(tmp_path / "foreign.parquet").problems[0]


def test_an_empty_file_is_no_problem_and_holds_nothing(tmp_path: Path, open_store: Open) -> None:
    (tmp_path / "empty.jsonl").touch()
    store = open_store(tmp_path / "empty.jsonl")
    assert (count(store), store.problems) == (0, [])


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no record file or run folder .*nowhere"):
        sources_of([tmp_path / "nowhere"])


def test_a_run_folder_gives_its_metrics_and_its_records(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "rew')
    sources = sources_of([tmp_path])
    assert (sources.parts, sources.runs) == ((tmp_path / "records",), (tmp_path,))
    assert overview.metrics_of(tmp_path).values.tolist() == [[1, "reward", 0.5]]


def test_lone_surrogates_in_lines_are_escaped(tmp_path: Path, open_store: Open) -> None:
    (tmp_path / "r.jsonl").write_text(json.dumps(recorded("a\ud800", "b", group_id="g\udfff")) + "\n")
    (text,) = open_store(tmp_path / "r.jsonl").query("SELECT completion FROM completions WHERE index = 0").completion
    assert text == "a\\ud800"


# --------------------------------------------------------------------------------------------------------------- filter


@pytest.fixture
def few(tmp_path: Path, open_store: Open) -> Store:
    """Two groups: step 1 with rewards 1 and 0, step 2 with 0.5 and a failure."""
    records = [
        recorded("yes 100%", "no", step=1, group_id="one"),
        recorded("it's", "no'; DROP TABLE lines; --", step=2, group_id="two", scores=(0.5, None)),
    ]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return open_store(tmp_path / "few.jsonl")


@pytest.mark.parametrize(
    ("wanted", "groups", "completions"),
    [
        (Filter(), ["two", "one"], 4),
        (Filter(first_step=2), ["two"], 2),
        (Filter(last_step=1), ["one"], 2),
        (Filter(least=0.5), ["two", "one"], 2),
        (Filter(scorer="s0", most=0.4), ["one"], 1),
        (Filter(scorer="s0", status="NOT_APPLICABLE"), ["two"], 1),
        (Filter(status="OK", text="100%"), ["one"], 1),
        (Filter(text="'; DROP TABLE"), ["two"], 1),
        (Filter(text="_"), [], 0),
        (Filter(scorer="x' OR true --", least=0.0), [], 0),
        (Filter(run="another"), [], 0),
    ],
)
def test_a_filter_finds_what_it_says(wanted: Filter, groups: list[str], completions: int, few: Store) -> None:
    found = find(few, wanted)
    assert [group.key[2] for group in found.groups] == groups
    assert (found.all_groups, found.all_completions) == (len(groups), completions)


def test_a_group_is_in_order_of_reward_and_what_has_none_is_last(few: Store) -> None:
    first, second = (group_of(few, ("r", step, name)) for step, name in ((1, "one"), (2, "two")))
    assert first is not None
    assert second is not None
    assert [one.text for one in first.completions] == ["yes 100%", "no"]
    assert [(one.reward, one.scorers[0].status) for one in second.completions] == [
        (0.5, "OK"),
        (None, "NOT_APPLICABLE"),
    ]
    assert group_of(few, ("r", 1, "three")) is None


def test_the_overview_counts_means_deciles_and_groups_without_signal(few: Store) -> None:
    scores = overview.scores_over_steps(few, None, 1)
    reward = scores[scores.name == "reward"].set_index("step")
    assert (reward["mean"][1], reward["d10"][1], reward["d90"][1]) == (0.5, pytest.approx(0.1), pytest.approx(0.9))
    assert reward["count"][2] == 1
    assert list(overview.groups_over_steps(few, None, 1).without_signal) == [0.0, 1.0]  # one reward tells nothing apart
    assert list(overview.groups_over_steps(few, None, 10).without_signal) == [0.5]
    assert len(overview.failures_over_steps(few, None, 1)) == 0  # not applicable is no failure
