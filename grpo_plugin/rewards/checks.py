"""What is looked at before the model loads: has the data what the scorers need, do functions, names and weights fit?

Owns the errors of that moment. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from grpo_plugin.config import setting
from grpo_plugin.rewards.connection import Connection
from grpo_plugin.rewards.groups import Row, make_group
from reward_server.errors import ConfigError
from reward_server.types import ScorerInfo

# What TRL itself does not hand to reward functions as columns (GRPOTrainer._calculate_rewards), and the images, which
# travel inside the prompt.
NOT_COLUMNS = frozenset({"prompt", "completion", "completion_ids", "image", "images"})


def check_data(connection: Connection, args: Any, dataset: Dataset | IterableDataset | None) -> None:
    """Raises ConfigError for a column that a scorer needs and will not get, InvalidGroupError for one that is not JSON.

    Looks at the column names and, where rows can be had by number, at the first.
    """
    if dataset is None or dataset.column_names is None:
        return
    chosen = setting(args, "reward_columns")
    columns = [name for name in dataset.column_names if name not in NOT_COLUMNS]
    columns = [name for name in columns if chosen is None or name in chosen]
    _check_columns(connection.scorers, columns, "the training data" if chosen is None else "reward_columns")
    if isinstance(dataset, Dataset) and len(dataset) and "prompt" in dataset.column_names:
        first = dataset[0]
        row = Row(first["prompt"], "", None, {name: first[name] for name in columns})
        connection.client.encode(make_group([row], token_ids=False))


def _check_columns(scorers: Sequence[ScorerInfo], columns: Sequence[str], where: str) -> None:
    """Raises ConfigError if a scorer needs a column that will not be sent."""
    for scorer in scorers:
        missing = [name for name in scorer.required_columns if name not in columns]
        if missing:
            raise ConfigError(
                f"scorer {scorer.name!r} needs the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}, and "
                f"{where} has {', '.join(sorted(columns)) or 'none'} beside the prompt: rename or add it, or change "
                "the scorer's options"
            )


def check_functions(
    reward_funcs: Sequence[Any], scorers: Sequence[ScorerInfo], reward_weights: Sequence[float] | None
) -> None:
    """Raises ValueError for a name that is taken twice, and for weights that are not one a function.

    `reward_funcs` are the local ones, and then one a scorer.
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
