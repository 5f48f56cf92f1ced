"""The file of what was scored: what a line holds, how it is sampled and turned over, and that it harms no call."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from reward_server.config import RecordsConfig, config_from_mapping
from reward_server.errors import ConfigError
from reward_server.evaluation.recorded import read_records
from reward_server.observability.record_lines import RecordLines
from reward_server.observability.records import Records, is_sampled
from reward_server.serving.server import RewardServer
from reward_server.types import Completion, Group
from tests.support.builders import make_group, make_scores
from tests.support.served import LENGTH, misbehaving, served

ROOT = Path(__file__).parents[3]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_line_holds_the_group_and_all_that_was_said_of_it(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    prompt = [{"role": "user", "content": "what?"}]
    completions = (Completion("ab\ud83d", columns={"own": 1}), Completion("raise"))
    group = Group(prompt, completions, {"answer": 4}, run_id="r", step=3, group_id="g")
    async with served(LENGTH, misbehaving(weight=2.0), records={"path": str(path)}) as caller:
        await caller.score(group)
    [line] = lines(path)
    assert (line["run_id"], line["step"], line["group_id"], line["prompt"]) == ("r", 3, "g", prompt)
    assert line["columns"] == {"answer": 4}
    assert line["completions"] == [{"content": "ab\ud83d", "columns": {"own": 1}}, {"content": "raise"}]
    assert line["rewards"] == [1.0 + 2.0 * 3.0, None]
    assert line["scorers"]["obeys"]["statuses"] == ["OK", "FAILED"]
    assert line["scorers"]["obeys"]["scores"] == [3.0, None]
    assert "TypeError" in line["scorers"]["obeys"]["messages"][1]
    assert line["scorers"]["short"]["version"]
    assert len(line["config_digest"]) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_groups_without_a_name_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    async with served(LENGTH, records={"path": str(path)}) as caller:
        for text in ("a", "bcdef"):
            scores = await caller.score(make_group([text], group_id=""))
            assert scores.group_id == ""
    first, second = (line["group_id"] for line in lines(path))
    assert first != second
    assert first.startswith("unnamed-")


def written(path: Path, groups: int, first: int = 0, pause_s: float = 0.0, **options: Any) -> Counter[str]:
    """Offers groups of about 500 bytes; what became of them."""
    outcomes: Counter[str] = Counter()
    records = Records(RecordsConfig(path=path, **options), lambda outcome, count: outcomes.update({outcome: count}))
    for index in range(first, first + groups):
        offer(records, index)
        time.sleep(pause_s)
    records.close()
    return outcomes


def offer(records: Records, index: int) -> None:
    records.offer(make_group(["x"], group_id=str(index)), make_scores([1.0], group_id=str(index)), 500)


def test_full_files_are_turned_over_and_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    assert written(path, 100, max_bytes=2000, keep=3) == {"written": 100}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r.jsonl", "r.jsonl.1", "r.jsonl.2", "r.jsonl.lock"]
    assert all(file.stat().st_size <= 2000 for file in tmp_path.iterdir())
    kept = [line["group_id"] for name in ("r.jsonl.2", "r.jsonl.1", "r.jsonl") for line in lines(tmp_path / name)]
    assert kept == [str(index) for index in range(100 - len(kept), 100)]  # the latest, none missing between


def test_one_file_is_begun_anew(tmp_path: Path) -> None:
    written(tmp_path / "r", 100, max_bytes=2000, keep=1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r", "r.lock"]
    assert lines(tmp_path / "r")[-1]["group_id"] == "99"


def test_a_restart_appends(tmp_path: Path) -> None:
    written(tmp_path / "r", 2)
    written(tmp_path / "r", 3)
    assert len(lines(tmp_path / "r")) == 5


def test_groups_that_come_together_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    write = RecordLines.write
    monkeypatch.setattr(RecordLines, "write", lambda self, them: (batches.append(len(them)), write(self, them)))
    assert written(tmp_path / "r", 200, pause_s=0.002) == {"written": 200}
    assert sum(batches) == 200
    assert len(batches) < 40  # about two or three: one in a fifth of a second


def test_a_group_that_no_file_can_hold_costs_itself_alone(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    records = Records(RecordsConfig(path=tmp_path / "r"), lambda outcome, count: outcomes.update({outcome: count}))
    for columns in ({}, {"bad": object()}, {}):
        records.offer(Group("p", (Completion("x"),), columns), make_scores([1.0]), 20 << 20)
    records.close()
    assert outcomes == {"written": 2, "failed": 1}


UNTIL_IT_IS_KILLED = """
import sys, time
from pathlib import Path
from tests.reward_server.observability.test_records import offer
from reward_server.config import RecordsConfig
from reward_server.observability.records import Records
records = Records(RecordsConfig(path=Path(sys.argv[1])), lambda *_: None)
for index in range(20_000):
    offer(records, index)
    time.sleep(0.005)
"""


def test_lines_are_there_while_the_server_runs_and_kill_9_loses_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "r"
    process = subprocess.Popen([sys.executable, "-c", UNTIL_IT_IS_KILLED, str(path)], cwd=ROOT)
    deadline = time.monotonic() + 30
    while (not path.exists() or path.read_bytes().count(b"\n") < 50) and time.monotonic() < deadline:
        time.sleep(0.01)
    seen = path.read_bytes().count(b"\n")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    names = [int(record.group.group_id) for record in read_records([path])]
    assert names == list(range(len(names)))
    assert len(names) >= seen >= 50


WRITER = """
import sys
from collections import Counter
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.reward_server.observability.test_records import written
assert written(Path(sys.argv[1]), 400, first=int(sys.argv[2]), max_bytes=20_000, keep=100) == {"written": 400}
"""


def test_several_processes_share_the_files_and_lose_and_tear_nothing(tmp_path: Path) -> None:
    path, root = tmp_path / "r", str(ROOT)
    commands = [[sys.executable, "-c", WRITER, str(path), str(first), root] for first in (0, 400)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(60) for process in processes] == [0, 0]
    files = [file for file in tmp_path.iterdir() if file.suffix != ".lock"]
    assert all(file.stat().st_size <= 20_000 for file in files)
    assert sorted(int(line["group_id"]) for file in files for line in lines(file)) == list(range(800))


def test_the_sample_is_a_share_chosen_by_name() -> None:
    groups = [make_group(group_id=f"r/{index}") for index in range(10_000)]
    chosen = [group for group in groups if is_sampled(group, 0.1)]
    assert 900 < len(chosen) < 1100  # 1,000 expected, 30 the standard deviation
    assert chosen == [group for group in groups if is_sampled(group, 0.1)]
    assert all(is_sampled(group, 0.2) for group in chosen)
    nameless = make_group(group_id="")
    assert 900 < sum(is_sampled(nameless, 0.1) for _ in range(10_000)) < 1100


async def test_a_full_disk_fails_no_call_and_is_logged_once_and_counted(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with caplog.at_level(logging.ERROR, logger="reward_server"):
        async with served(LENGTH, records={"path": str(full)}) as caller:
            for index in range(5):
                assert (await caller.score(make_group(["ab"], group_id=str(index)))).scorers[0].scores[0].value == 1.0
            metrics = caller.server.metrics
    [record] = caplog.records
    assert "No space left on device" in record.getMessage()
    assert 'reward_server_records_total{outcome="failed"} 5.0' in metrics.text()


def test_a_line_that_was_cut_by_a_full_disk_is_taken_back(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1000, before[1])
    )  # Python ignores SIGXFSZ: a write fails, as on a full disk
    try:
        outcomes = written(tmp_path / "r", 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcomes["failed"] > 0
    assert len(lines(tmp_path / "r")) == outcomes["written"] > 0


def test_a_disk_that_is_too_slow_loses_records_and_holds_up_nobody(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # it never reads: the pipe is full after 64 KiB
    outcomes: Counter[str] = Counter()
    records = Records(RecordsConfig(path=pipe), lambda outcome, count: outcomes.update({outcome: count}))
    try:
        for index in range(10):
            records.offer(make_group(["x" * 100_000], group_id=str(index)), make_scores([1.0]), 20 << 20)
        assert outcomes["dropped"] == 7  # three times 20 MiB may wait
        records.close(grace_s=0.1)
    finally:
        os.close(reader)  # ends the write that waits


def test_a_file_that_cannot_be_is_said_at_the_start(tmp_path: Path) -> None:
    config = config_from_mapping({"scorers": [LENGTH], "records": {"path": "none/r"}}, base_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"records\.path: cannot write .*none/r: No such file"):
        Records(config.records, lambda outcome, count: None)
    RewardServer(config)  # and nothing is opened before startup


def test_a_few_groups_of_neighbouring_names_are_sampled_too() -> None:
    shares = [
        sum(is_sampled(make_group(group_id=f"run/{step}-{n}", run_id="run"), 0.5) for n in range(10))
        for step in range(40)
    ]
    assert 160 < sum(shares) < 240  # 200 expected, 10 the standard deviation
    assert min(shares) > 0
    assert max(shares) < 10
