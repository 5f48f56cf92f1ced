"""What is refused before the model loads, with a real server: each error names the data set and the way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from grpo_plugin import RemoteGRPOTrainer
from reward_server.errors import ConfigError
from tests.grpo_plugin.trainer.test_remote import remote
from tests.support.builders import make_dataset
from tests.support.servers import function

pytestmark = pytest.mark.slow

Serve = Callable[..., Any]
NO_MODEL = "no/such/model"  # loading it would be another error


def lacking() -> Dataset:
    return make_dataset().remove_columns("target")


@pytest.mark.parametrize(
    ("evaluation", "named"),
    [
        (lacking, r"the evaluation data has tags"),
        (lambda: {"easy": make_dataset(), "hard": lacking()}, r"the evaluation set 'hard' has tags"),
        (lambda: DatasetDict(easy=lacking(), hard=make_dataset()), r"the evaluation set 'easy' has tags"),
        (lambda: lacking().to_iterable_dataset(), r"the evaluation data has tags"),
        (lambda: IterableDataset.from_generator(lambda: iter(lacking())), r"the evaluation data has tags"),
    ],
)
def test_an_evaluation_set_that_lacks_a_scorers_column_is_named_before_the_model_loads(
    tmp_path: Path, serve: Serve, evaluation: Callable[[], Any], named: str
) -> None:
    args = remote(tmp_path, serve(function("target_share")))
    with pytest.raises(ConfigError, match=f"'target_share' needs the column target, and {named}"):
        RemoteGRPOTrainer(NO_MODEL, args=args, train_dataset=make_dataset(), eval_dataset=evaluation())


def test_reward_columns_that_leave_out_what_a_scorer_needs_are_named(tmp_path: Path, serve: Serve) -> None:
    args = remote(tmp_path, serve(function("target_share")), reward_columns=["tags"])
    with pytest.raises(ConfigError, match=r"needs the column target, and reward_columns has tags: add it there"):
        RemoteGRPOTrainer(NO_MODEL, args=args, train_dataset=make_dataset())


@pytest.mark.parametrize("where", ["train", "evaluation"])
def test_bytes_in_a_column_are_refused_although_the_first_row_has_none(
    tiny_model: str, tmp_path: Path, serve: Serve, where: str
) -> None:
    blobs = make_dataset().add_column("blob", [None] * 11 + [b"\0"])
    data = {"train_dataset": make_dataset(), "eval_dataset": make_dataset()} | (
        {"train_dataset": blobs} if where == "train" else {"eval_dataset": {"hard": blobs}}
    )
    server = serve(function("vowels"))
    named = "the training data" if where == "train" else "the evaluation set 'hard'"
    with pytest.raises(ConfigError, match=f"column 'blob' of {named} holds bytes.*reward_columns.*without 'blob'"):
        RemoteGRPOTrainer(NO_MODEL, args=remote(tmp_path, server), **data)
    RemoteGRPOTrainer(tiny_model, args=remote(tmp_path, server, reward_columns=["target"]), **data)  # the way out


def test_a_value_that_has_no_plain_form_is_named_with_its_set(tmp_path: Path, serve: Serve) -> None:
    args = remote(tmp_path, serve(function("vowels")))
    data = make_dataset().add_column("nan", [float("nan")] * 12)
    with pytest.raises(ConfigError, match=r"first row of the evaluation data, column 'nan' cannot be sent.*reward_col"):
        RemoteGRPOTrainer(NO_MODEL, args=args, train_dataset=make_dataset(), eval_dataset=data)


@pytest.mark.parametrize("name", ["prompts", "completions"])
def test_a_column_that_takes_the_name_of_an_argument_of_reward_functions_is_refused(
    tmp_path: Path, serve: Serve, name: str
) -> None:
    args = remote(tmp_path, serve(function("vowels")), reward_columns=["target"])
    with pytest.raises(ConfigError, match=rf"the training data has a column '{name}'.*rename the column"):
        RemoteGRPOTrainer(NO_MODEL, args=args, train_dataset=make_dataset().rename_column("tags", name))


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_a_data_set_with_a_format_trains_on_the_scores_of_the_plain_one(
    tiny_model: str, tmp_path: Path, serve: Serve, form: str
) -> None:
    server = serve(function("target_share"))
    scores = []
    data = make_dataset().add_column("weights", list(np.arange(12) / 2))
    for dataset in (data, data.with_format(form)):
        args = remote(tmp_path, server, max_steps=2)
        trainer = RemoteGRPOTrainer(tiny_model, args=args, train_dataset=dataset)
        trainer.train()
        scores.append([log["reward"] for log in trainer.state.log_history if "reward" in log])
        assert not any("reward/dropped" in log for log in trainer.state.log_history)
    assert scores[0] == scores[1]
