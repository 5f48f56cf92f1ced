"""Which service scored a run, written down and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo_plugin.rewards import provenance
from reward_server.types import Limits, ScorerInfo, ServerInfo


def description(digest: str = "d", **weights: float) -> dict[str, Any]:
    scorers = tuple(ScorerInfo(name, "math", "1", weight, True, False) for name, weight in weights.items())
    return provenance.describe(ServerInfo(1, "0.1.0", digest, scorers, Limits(1, 1)), list(weights))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    provenance.write(description(a=1.0), tmp_path / "run")
    assert provenance.read(tmp_path / "run") == description(a=1.0)
    assert provenance.read(tmp_path) is None


def test_equal_digests_are_no_difference() -> None:
    assert provenance.differences(description(a=1.0), description(a=1.0)) == []


def test_each_change_is_a_phrase() -> None:
    changes = provenance.differences(description("d", a=1.0, b=1.0), description("e", a=2.0, c=1.0))
    assert changes == ["scorer 'b' is gone", "scorer 'c' is new", "weight of scorer 'a' was 1.0 and is 2.0"]


def test_a_digest_that_changed_by_an_option_says_so() -> None:
    assert provenance.differences(description("d", a=1.0), description("e", a=1.0)) == ["options of a scorer"]
