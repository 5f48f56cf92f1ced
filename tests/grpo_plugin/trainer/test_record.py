"""`record_rewards`: what is on the disk after training is what was trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from reward_server.errors import ConfigError
from reward_server.evaluation.recorded import read_records
from reward_server.launch import ServerProcess
from tests.support import scoring
from tests.support.servers import function
from tests.support.training import remote, train

pytestmark = pytest.mark.slow


def rows_of(folder: Path) -> list[dict[str, Any]]:
    parts = sorted((folder / "ours" / "records").glob("*.parquet"))
    return [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]


def test_every_completion_is_recorded_with_its_advantage_and_length(tiny_model: str, tmp_path: Path) -> None:
    args = remote(tmp_path, record_rewards="all", max_steps=2)
    trainer = train(RemoteGRPOTrainer, tiny_model, args, scoring.vowels)
    rows = rows_of(tmp_path)
    assert [(row["step"], row["index"]) for row in rows] == [(s, i) for s in (0, 1) for _ in (0, 1) for i in range(4)]
    groups = defaultdict(list)
    for row in rows:
        groups[row["group_id"]].append(row)
        assert row["scorers"][0]["name"] == "vowels"
        assert row["reward"] == row["scorers"][0]["score"]
        assert row["reward"] == pytest.approx(scoring.vowels([row["completion"]])[0])  # float32 by TRL
        assert 1 <= row["length"] <= 12
        assert not row["truncated"] or row["length"] == 12
        assert row["dropped"] is False
    for group in groups.values():
        assert abs(sum(row["advantage"] for row in group)) < 1e-3
        best = max(group, key=lambda row: row["reward"])
        assert best["advantage"] == max(row["advantage"] for row in group)
    last = [row["advantage"] for row in rows[-8:]]
    assert last == pytest.approx(list(trainer._logs["advantages"])[-8:])


@pytest.mark.oldest_trl
def test_recording_changes_nothing_that_is_learnt(tiny_model: str, tmp_path: Path) -> None:
    weights = []
    for told in (None, "all"):
        args = remote(tmp_path / str(told), record_rewards=told, max_steps=2)
        weights.append(train(RemoteGRPOTrainer, tiny_model, args, scoring.vowels).model.state_dict())
    assert all((weights[0][name] == value).all() for name, value in weights[1].items())
    assert not (tmp_path / "None" / "ours" / "records").exists()


@pytest.mark.parametrize("score_ahead", [0, 1])
def test_failed_scores_keep_their_status_and_their_completions_are_marked(
    score_ahead: int, tiny_model: str, tmp_path: Path, serve: Callable[..., ServerProcess]
) -> None:
    server = serve(function("flaky"))
    args = remote(tmp_path, server, record_rewards="all", max_steps=3, score_ahead=score_ahead)
    train(RemoteGRPOTrainer, tiny_model, args)
    rows = rows_of(tmp_path)
    assert len(rows) == 24
    statuses = {row["scorers"][0]["status"] for row in rows}
    assert statuses == {"OK", "FAILED"}
    for row in rows:
        [scorer] = row["scorers"]
        assert (scorer["score"] is None) == (scorer["status"] == "FAILED") == bool(scorer["message"])
        assert row["reward"] == scorer["score"]
        if scorer["status"] == "FAILED":
            assert row["dropped"]
            assert row["advantage"] == 0.0
    assert all(record.config_digest == server.config_digest for record in read_records([args_folder(args)]))


def args_folder(args: RemoteGRPOConfig) -> Path:
    return Path(args.output_dir) / "records"


def test_a_share_records_whole_groups(tiny_model: str, tmp_path: Path) -> None:
    args = remote(tmp_path, record_rewards="0.5", max_steps=5)
    train(RemoteGRPOTrainer, tiny_model, args, scoring.vowels)
    rows = rows_of(tmp_path)
    assert 0 < len(rows) < 40
    assert [row["index"] for row in rows] == [0, 1, 2, 3] * (len(rows) // 4)


@pytest.mark.parametrize("told", ["0", "1.5", "-1", "some", "nan"])
def test_a_share_that_is_none_is_refused(told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="record_rewards is 'all' or a share"):
        remote(tmp_path, record_rewards=told)


def test_a_folder_that_cannot_be_written_costs_no_step(tiny_model: str, tmp_path: Path) -> None:
    class Broken(RemoteGRPOTrainer):
        def _records_of_run(self) -> Any:
            records = super()._records_of_run()
            folder = Path(self.args.output_dir) / "records"
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()  # as root no permission would refuse
            return records

    trainer = train(Broken, tiny_model, remote(tmp_path, record_rewards="all", max_steps=2), scoring.vowels)
    assert trainer.state.global_step == 2
