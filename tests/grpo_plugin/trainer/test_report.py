"""`report_by`: a trainer logs the rewards of a mixture's parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from grpo_plugin import RemoteGRPOTrainer
from reward_server.errors import ConfigError
from reward_server.launch import ServerProcess
from tests.support import scoring
from tests.support.servers import function
from tests.support.training import remote, train

Serve = Callable[..., ServerProcess]

pytestmark = pytest.mark.slow

# Two groups of four a step, one of each source.
DATA = Dataset.from_dict({"prompt": ["ab", "cd"] * 8, "source": ["math", "code"] * 8})


@pytest.mark.parametrize("score_ahead", [0, 1])
def test_parts_add_up_to_the_whole_also_with_failures_and_in_evaluation(
    score_ahead: int, tiny_model: str, tmp_path: Path, serve: Serve
) -> None:
    server = serve(function("flaky"))
    args = remote(
        tmp_path,
        server,
        report_by="source",
        max_steps=2,
        score_ahead=score_ahead,
        shuffle_dataset=False,
        per_device_eval_batch_size=8,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer = train(RemoteGRPOTrainer, tiny_model, args, data=DATA, eval_dataset=DATA.select(range(2)))
    logged = trainer.state.log_history
    steps = [line for line in logged if "reward" in line]
    assert len(steps) == 2
    for line in steps:
        assert line["source/math/groups"] == line["source/code/groups"] == 1.0
        failed = 4 * (line["source/math/failed"] + line["source/code/failed"])
        assert failed == line["reward/status/failed"] > 0
        assert [line.get(f"source/{part}/reward") for part in ("math", "code")] == [
            line.get(f"source/{part}/rewards/flaky") for part in ("math", "code")
        ]
    (evaluation,) = [line for line in logged if "eval_reward" in line]
    assert evaluation["eval_source/math/groups"] == 1.0


def test_local_functions_are_reported_too(tiny_model: str, tmp_path: Path) -> None:
    args = remote(tmp_path, report_by="source", max_steps=1)
    trainer = train(RemoteGRPOTrainer, tiny_model, args, scoring.vowels, DATA)
    (line,) = [line for line in trainer.state.log_history if "reward" in line]
    parts = [line["source/math/reward"], line["source/code/reward"]]
    groups = [line["source/math/groups"], line["source/code/groups"]]
    assert sum(p * g for p, g in zip(parts, groups, strict=True)) / 2 == pytest.approx(line["reward"], abs=1e-6)
    assert line["source/math/failed"] == 0.0


def test_a_column_that_is_not_there_is_named_before_the_model_loads(tmp_path: Path) -> None:
    args = remote(tmp_path, report_by="sauce")
    with pytest.raises(ConfigError, match=r"column 'sauce', and the training data has prompt, source"):
        RemoteGRPOTrainer("no-such-model", reward_funcs=scoring.vowels, args=args, train_dataset=DATA)
