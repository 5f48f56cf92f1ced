"""Checks before the model loads: data have the columns that scorers need; functions, names and weights fit together.

Owns the errors of these checks. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset

from grpo_plugin.config import setting
from grpo_plugin.rewards.columns import RESERVED_COLUMNS, media_columns, sent_columns
from grpo_plugin.rewards.connection import Connection
from grpo_plugin.rewards.groups import Row, make_group
from reward_server.errors import ConfigError, InvalidGroupError
from reward_server.types import ScorerInfo


def check_data(
    connection: Connection, args: Any, train_dataset: Any, eval_dataset: Any = None, *, columns_are_added: bool = False
) -> None:
    """Checks the columns of the training data and of every evaluation set. Raises ConfigError that names the set.

    Looks at the column names, at their types and, where rows can be had by number, at the first row. With
    `columns_are_added` (a rollout function or an environment adds some) a missing column is no error.
    """
    chosen = setting(args, "reward_columns")
    scorers = () if columns_are_added else connection.scorers
    for where, dataset in _named_sets(train_dataset, eval_dataset):
        names = _column_names(dataset)
        if names is None:
            continue
        _check_names(names, where)
        _check_required(scorers, names, chosen, where)
        _check_types(dataset, sent_columns(names, chosen), where)
        _check_first_row(connection, dataset, sent_columns(names, chosen), where)


def check_report_by(args: Any, train_dataset: Any, eval_dataset: Any = None) -> None:
    """Checks that every data set has the column `report_by` names. Raises ConfigError that names the set."""
    column = setting(args, "report_by")
    if column is None:
        return
    for where, dataset in _named_sets(train_dataset, eval_dataset):
        names = _column_names(dataset)
        if names is not None and column not in names:
            raise ConfigError(f"report_by names the column {column!r}, and {where} has {', '.join(sorted(names))}")


def _named_sets(train_dataset: Any, eval_dataset: Any) -> Iterator[tuple[str, Any]]:
    """Each data set with the words that an error names it by."""
    yield "the training data", train_dataset
    if isinstance(eval_dataset, Mapping):  # a dict, DatasetDict or IterableDatasetDict
        for name, dataset in eval_dataset.items():
            yield f"the evaluation set {name!r}", dataset
    else:
        yield "the evaluation data", eval_dataset


def _column_names(dataset: Any) -> list[str] | None:
    """The names of a data set's columns; a stream that does not say them is asked for its first row."""
    if dataset is None:
        return None
    names = getattr(dataset, "column_names", None)
    if names is not None:
        return list(names)
    return next((list(row) for row in dataset if isinstance(row, Mapping)), None)


def _check_names(names: Collection[str], where: str) -> None:
    for name in RESERVED_COLUMNS:
        if name in names:
            raise ConfigError(
                f"{where} has a column {name!r}, a name under which TRL hands the batch's own {name} to every reward "
                f"function: rename the column (rename_columns, or `columns:` in a training YAML), or remove it"
            )


def _check_required(
    scorers: Sequence[ScorerInfo], names: Collection[str], chosen: Collection[str] | None, where: str
) -> None:
    sent = sent_columns(names, chosen)
    for scorer in scorers:
        missing = [name for name in scorer.required_columns if name not in sent]
        if not missing:
            continue
        needs = f"scorer {scorer.name!r} needs the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}, and "
        if chosen is not None and all(name in names for name in missing):
            raise ConfigError(f"{needs}reward_columns has {', '.join(sorted(chosen)) or 'none'}: add it there")
        there = sent_columns(names, None)
        raise ConfigError(
            f"{needs}{where} has {', '.join(sorted(there)) or 'none'} beside the prompt: rename or add it, or change "
            "the scorer's options"
        )


def _check_types(dataset: Any, columns: Sequence[str], where: str) -> None:
    features = getattr(dataset, "features", None) or {}
    for name, kind in media_columns({name: features[name] for name in columns if name in features}):
        raise ConfigError(
            f"column {name!r} of {where} holds {kind}, which cannot be sent to the reward service: name in "
            f"reward_columns the columns that the scorers need, without {name!r}, or remove or convert the column"
        )


def _check_first_row(connection: Connection, dataset: Any, columns: Sequence[str], where: str) -> None:
    if not isinstance(dataset, Dataset) or not len(dataset) or "prompt" not in dataset.column_names:
        return
    first = dataset.select_columns(["prompt", *columns])[0]
    row = Row(first["prompt"], "", None, {name: first[name] for name in columns})
    try:
        connection.client.encode(make_group([row], token_ids=False))
    except InvalidGroupError as error:
        raise ConfigError(f"in the first row of {where}, {error}") from error


def check_functions(
    reward_funcs: Sequence[Any], scorers: Sequence[ScorerInfo], reward_weights: Sequence[float] | None
) -> None:
    """Raises ValueError if a name is used twice, or if the number of weights is not that of the functions.

    `reward_funcs` holds the local functions, and then one for each scorer.
    """
    names = [func if isinstance(func, str) else getattr(func, "__name__", repr(func)) for func in reward_funcs]
    twice = sorted({scorer.name for scorer in scorers if names.count(scorer.name) > 1})
    if twice:
        raise ValueError(f"{twice} name both a local reward function and a scorer of the service: rename one of them")
    if reward_weights is not None and len(reward_weights) != len(reward_funcs):
        raise ValueError(
            f"reward_weights has {len(reward_weights)} values for {len(reward_funcs)} reward functions, the local ones "
            f"first and then the service's scorers: {', '.join(names)}; leave it out to use the service's weights"
        )
