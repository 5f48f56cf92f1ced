"""Scores of a composite's parts are normalised by statistics that stand still, while the next ones are gathered."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest

from grpo_plugin.rewards import provenance
from reward_server.cli import commands
from reward_server.client import RewardClient
from reward_server.config import config_from_mapping
from reward_server.errors import ScorerLoadError
from reward_server.scorers.statistics import Statistics, add_to_file, read_statistics
from tests.support.builders import make_group
from tests.support.composites import composite, part, served, value
from tests.support.servers import function


def test_statistics_of_a_stream_are_those_of_its_parts() -> None:
    # 1, 2, 3, 4, 10: mean 4, squares 9 + 4 + 1 + 0 + 36 = 50, deviation sqrt(50 / 4)
    whole = Statistics.of([1, 2]).merged(Statistics.of([3, 4, 10])).merged(Statistics())
    assert (whole.count, whole.mean, whole.squares) == (5, pytest.approx(4), pytest.approx(50))
    assert whole.normalised(4 + 12.5**0.5) == pytest.approx(1)


def write_statistics(path: Path, *values: float) -> None:
    path.unlink(missing_ok=True)
    add_to_file(path, Statistics.of(values))


def test_scores_are_normalised_then_clipped_then_weighed(tmp_path: Path) -> None:
    write_statistics(tmp_path / "s.json", 1.0, 3.0)  # mean 2, deviation sqrt(2)
    options = {"normalise": {"a": {"statistics": str(tmp_path / "s.json")}}, "clip_parts": {"a": [-1, 1]}}
    scorer = composite(part("a", weight=2.0), part("b"), **options)
    assert value(scorer, 3.0, 0.0).value == pytest.approx(2 * 0.5**0.5)
    assert value(scorer, 100.0, 0.0).value == 2.0


def test_several_processes_gather_in_one_file_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "gathered.json"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(add_to_file, [(path, Statistics.of([n, n + 1.0])) for n in range(100)])
    assert read_statistics(path).count == 200
    assert read_statistics(path).mean == pytest.approx(50.0)


def test_a_file_that_cannot_be_gathered_in_costs_no_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    scorer = composite(normalise={"a": {"gather": str(tmp_path / "file" / "gathered.json")}})
    for _ in range(2):
        assert value(scorer, 1.0, 2.0).value == 3.0
        scorer.save_gathered()
    assert caplog.text.count("cannot be gathered") == 1
    (tmp_path / "file").unlink()
    scorer.save_gathered()
    assert read_statistics(tmp_path / "file" / "gathered.json").count == 2, "what could not be saved was kept"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file; gather first"),
        ("{}", "must hold count, mean and squares"),
        ("no json", "cannot be read"),
        ('{"count": 1, "mean": 2.0, "squares": 0.0}', "1 scores of deviation 0, which nothing can be"),
    ],
)
def test_statistics_that_nothing_can_be_normalised_by_are_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "s.json").write_text(content)
    with pytest.raises(ScorerLoadError, match=message):
        composite(normalise={"a": {"statistics": str(tmp_path / "s.json")}})


def normalising(folder: Path, **files: str) -> dict[str, Any]:
    files = {name: str(folder / file) for name, file in files.items()}
    return {
        "type": "composite",
        "name": "q",
        "parts": [function("vowels", deterministic=True)],
        "normalise": {"vowels": files},
    }


@pytest.mark.slow
def test_gathering_leaves_scores_and_digest_alone_and_adopting_changes_both_once(serve: Any, tmp_path: Path) -> None:
    write_statistics(tmp_path / "now.json", 0.0, 1.0)
    config = normalising(tmp_path, statistics="now.json", gather="next.json")
    group = make_group(["aaa", "xyz", "ab"])
    one, other = serve(config), serve(config)
    assert one.config_digest == other.config_digest
    with RewardClient(one.endpoint) as first, RewardClient(other.endpoint) as second:
        before = provenance.describe(first.info(), ["q"])
        answers = [first.score(make_group(["a" * n, "b"], group_id=str(n)), timeout_s=30) for n in range(20)]
        assert {answer.config_digest for answer in answers} == {one.config_digest}
        seen_much, seen_nothing = first.score(group, timeout_s=30), second.score(group, timeout_s=30)
        assert seen_much.rewards() == seen_nothing.rewards()
        assert provenance.differences(before, provenance.describe(first.info(), ["q"])) == []
    one.stop()
    other.stop()
    assert read_statistics(tmp_path / "next.json").count == 20 * 2 + 2 * 3, "both have added what they saw"
    restarted = serve(config)  # as after a crash: nothing is adopted by itself
    assert restarted.config_digest == one.config_digest
    shutil.copy(tmp_path / "next.json", tmp_path / "now.json")
    with RewardClient(serve(config).endpoint) as adopted:
        (change,) = provenance.differences(before, provenance.describe(adopted.info(), ["q"]))
        assert change.startswith("version of scorer 'q' was 1/")
        assert adopted.score(group, timeout_s=30).rewards() != seen_nothing.rewards()


def test_without_statistics_scores_stay_as_they_are(tmp_path: Path) -> None:
    (scores,), _ = served([normalising(tmp_path, gather="next.json")], make_group(["a", "b"]))
    assert scores.rewards() == [0.5, 0.0]
    assert json.loads((tmp_path / "next.json").read_text())["count"] == 2


def test_checking_a_configuration_neither_gathers_nor_asks_the_cache(tmp_path: Path) -> None:
    config = {"scorers": [normalising(tmp_path, gather="next.json")], "cache": {"path": str(tmp_path / "c.sqlite")}}
    assert commands.check(config_from_mapping(config), None) == 0
    assert list(tmp_path.iterdir()) == []
