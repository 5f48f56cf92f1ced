"""What scorers return and raise becomes a valid result, or a failure that shows its cause in the user's own code."""

from __future__ import annotations

from pathlib import Path

import pytest

from reward_server.errors import InvalidGroupError
from reward_server.execution.executors import LoopExecutor
from reward_server.execution.results import NoResultError, failure_from
from reward_server.scorers.registry import build, parse_options
from tests.support.builders import make_group


async def test_the_traceback_in_the_log_begins_in_the_users_code(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("async def f(completions, **_):\n    return completions[7]\n")
    options = {"type": "function", "name": "f", "function": "mine.py:f"}
    executor = LoopExecutor(build(parse_options(options, base_dir=tmp_path)))
    await executor.load()
    with pytest.raises(NoResultError) as caught:
        await executor.run(make_group(["a"]))
    assert caught.value.message == "IndexError: list index out of range"
    files = [line for line in caught.value.details.splitlines() if line.startswith("  File ")]
    assert [line.split('"')[1] for line in files] == [str(tmp_path / "mine.py")]


def test_an_error_that_blames_the_group_stays_the_callers() -> None:
    with pytest.raises(InvalidGroupError, match="no such column"):
        failure_from(InvalidGroupError("no such column"))
