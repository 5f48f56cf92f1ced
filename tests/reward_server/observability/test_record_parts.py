"""Records as Parquet parts: whole files only, bounded, readable while they are written, and the way back to groups."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest

from reward_server.config import RecordsConfig
from reward_server.errors import ConfigError
from reward_server.evaluation.recorded import read_records
from reward_server.observability.record_form import record_of, rows_of
from reward_server.observability.record_parts import RecordParts
from reward_server.observability.record_table import part_schema, table_of
from reward_server.observability.records import Records
from reward_server.types import Completion, Group, GroupScores
from tests.support.builders import make_group, make_scores

ROOT = Path(__file__).parents[3]


def config(path: Path, **options: object) -> RecordsConfig:
    return RecordsConfig.model_validate({"path": path, "format": "parquet", **options})


def written(path: Path, groups: int, first: int = 0, **options: object) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    records = Records(config(path, **options), lambda outcome, count: outcomes.update({outcome: count}))
    for index in range(first, first + groups):
        group = make_group(["x" * 50, "y"], group_id=str(index), run_id="r")
        records.offer(group, make_scores([1.0, None], group_id=str(index)), 500)
    records.close()
    return outcomes


def parts(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet"))


def test_a_part_closes_after_so_many_groups_and_the_rest_at_the_end(tmp_path: Path) -> None:
    assert written(tmp_path / "r", 25, part_groups=10, part_s=600) == {"written": 25}
    rows = [pyarrow.parquet.read_table(part).num_rows for part in parts(tmp_path / "r")]
    assert rows == [20, 20, 10]
    assert all(stat.S_IMODE(part.stat().st_mode) == 0o600 for part in parts(tmp_path / "r"))
    assert stat.S_IMODE((tmp_path / "r").stat().st_mode) == 0o700


def test_a_part_closes_after_so_many_seconds_while_the_server_runs(tmp_path: Path) -> None:
    records = Records(config(tmp_path / "r", part_s=0.2), lambda *_: None)
    records.offer(make_group(["x"]), make_scores([1.0]), 100)
    deadline = time.monotonic() + 10
    while not parts(tmp_path / "r") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [record.rewards_G for record in read_records([tmp_path / "r"])] == [[1.0]]
    records.close()


def test_both_forms_have_the_same_rows(tmp_path: Path) -> None:
    own = {"advantage": [0.5, -0.5], "truncated": [True, False]}
    several = (Completion("a", columns={"answer": 1}), Completion([{"role": "assistant", "content": "é"}], prompt="q"))
    scored = [
        (make_group(["x", "y", "z"], columns={"answer": "4"}), make_scores([1.0, None, 0.5], [0.0, 0.0, math.inf])),
        (Group([{"role": "user", "content": "p"}], several, run_id="r", step=7, group_id="g"), make_scores([1.0, 2.0])),
        (make_group(["alone"]), with_extra(make_scores([2.0], weight=0.5))),
    ]
    parts = RecordParts(tmp_path, part_groups=10, part_s=60, max_bytes=1 << 30)
    rows = [row for n, pair in enumerate(scored) for row in rows_of(record_of(*pair, 5.0, own if n == 1 else None))]
    table = table_of(
        [parts.encoded(*pair, 5.0, own if n == 1 else None) for n, pair in enumerate(scored)], part_schema()
    )
    assert table.to_pylist() == rows


def with_extra(scores: GroupScores) -> GroupScores:
    scorer = dataclasses.replace(scores.scorers[0], name="more", extra={"found": ["12"], "n": [3]})
    return dataclasses.replace(scores, scorers=(*scores.scorers, scorer))


def test_a_group_comes_back_as_it_was(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "what?"}]
    completions = (Completion([{"role": "assistant", "content": "4"}], columns={"own": 1}), Completion("lone \ud83d"))
    group = Group(messages, completions, {"answer": 4, "own": 0}, run_id="r", step=3, group_id="g")
    records = Records(config(tmp_path / "r"), lambda *_: None)
    records.offer(group, make_scores([1.0, None]), 100)
    records.close()
    [record] = read_records([tmp_path / "r"])
    assert record.group.prompt == messages
    assert record.group.contents() == [completions[0].content, "lone \\ud83d"]  # Parquet holds no lone surrogate
    assert record.group.column("own") == [1, 0]
    assert record.group.columns == {"answer": 4}
    assert (record.group.run_id, record.group.step, record.group.group_id) == ("r", 3, "g")
    assert record.scores == {"s0": [1.0, None]}


WRITER = """
import sys, time
from pathlib import Path
from tests.reward_server.observability.test_record_parts import config
from reward_server.observability.records import Records
from tests.support.builders import make_group, make_scores
records = Records(config(Path(sys.argv[1]), part_groups=5), lambda *_: None)
for index in range(100000):
    records.offer(make_group(["x"], group_id=str(index)), make_scores([1.0]), 100)
    time.sleep(0.001)
"""


def test_kill_9_loses_no_closed_part_and_leaves_nothing_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], cwd=ROOT)
    deadline = time.monotonic() + 30
    while len(parts(folder)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    names = [int(record.group.group_id) for record in read_records([folder])]
    assert names == list(range(len(names)))
    assert len(names) >= 25
    assert written(folder, 1) == {"written": 1}  # another writer goes on in the same folder


def test_the_oldest_parts_are_removed_when_all_are_too_large(tmp_path: Path) -> None:
    written(tmp_path / "r", 200, part_groups=10, max_bytes=8000, keep=4)
    kept = parts(tmp_path / "r")
    assert 1 < len(kept) < 20
    assert sum(part.stat().st_size for part in kept) <= 32_000
    names = [int(record.group.group_id) for record in read_records([tmp_path / "r"])]
    assert names == list(range(200 - len(names), 200))


def test_a_disk_that_refuses_costs_groups_that_are_counted_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: Counter[str] = Counter()
    folder = tmp_path / "r"
    records = Records(config(folder, part_groups=4), lambda outcome, count: outcomes.update({outcome: count}))
    folder.rmdir()  # as root no permission would refuse
    with caplog.at_level(logging.ERROR):
        for index in range(10):
            records.offer(make_group(["x"], group_id=str(index)), make_scores([1.0]), 100)
        records.close()
    assert outcomes == {"failed": 10}
    assert len([record for record in caplog.records if "was not written" in record.message]) == 1


def test_a_folder_that_cannot_be_made_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"records\.path: cannot write to the folder"):
        Records(config(tmp_path / "file" / "r"), lambda *_: None)
    assert os.listdir(tmp_path) == ["file"]


def test_a_foreign_parquet_file_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(Exception, match="is not a part of a reward server's records"):
        list(read_records([tmp_path / "a.parquet"]))
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "b.parquet")
    with pytest.raises(Exception, match="is not a part of a reward server's records"):
        list(read_records([tmp_path / "b.parquet"]))


def test_jsonl_and_parquet_hold_the_same(tmp_path: Path) -> None:
    written(tmp_path / "r", 7)
    lines = Records(RecordsConfig(path=tmp_path / "r.jsonl"), lambda *_: None)
    for index in range(7):
        group = make_group(["x" * 50, "y"], group_id=str(index), run_id="r")
        lines.offer(group, make_scores([1.0, None], group_id=str(index)), 500)
    lines.close()
    both = [list(read_records([path])) for path in (tmp_path / "r", tmp_path / "r.jsonl")]
    assert [(r.group, r.rewards_G, r.scores) for r in both[0]] == [(r.group, r.rewards_G, r.scores) for r in both[1]]
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])["schema"] == 1
