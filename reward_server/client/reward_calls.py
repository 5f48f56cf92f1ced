"""The calls that reward functions of one server share: rows into groups, and one call per group.

Owns how rows form groups, and what is remembered between the functions of a trainer, which ask one after another, or at
once, for the same completions. Connects in the process that uses it: it may be pickled, sent to a spawned process, or
made before a fork. Knows nothing of scores.
"""

from __future__ import annotations

import itertools
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from reward_server import errors
from reward_server.client.clients import RewardClient
from reward_server.client.plain import plain
from reward_server.types import Group, GroupScores

_NOT_COLUMNS = frozenset({"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"})

# Batches that not every function has asked for. More are there only if the trainer uses some of the functions.
_REMEMBERED = 8


@dataclass(frozen=True, slots=True)
class Grouping:
    """How the rows of a call form groups: all of them are one, `num_generations` each, or as the prompt changes."""

    num_generations: int | None = None
    group_per_call: bool = False

    def __post_init__(self) -> None:
        if self.group_per_call and self.num_generations is not None:
            raise errors.ConfigError(
                f"group_per_call takes groups of any size, and num_generations ({self.num_generations}) says which: "
                "give one of them to remote_rewards"
            )

    @property
    def is_known(self) -> bool:
        """Whether groups are the trainer's own and not guessed from the prompts."""
        return self.group_per_call or self.num_generations is not None

    def parts(self, prompts: Sequence[Any]) -> list[slice]:
        """The slices of the rows that form groups. Raises ConfigError if `num_generations` does not divide them."""
        count, size = len(prompts), self.num_generations
        if self.group_per_call:
            starts = [0]
        elif size is None:
            starts = [i for i in range(count) if i == 0 or prompts[i] != prompts[i - 1]]
        elif count % size:
            raise errors.ConfigError(
                f"num_generations ({size}) must divide the rows of this rank ({count}), or a group is split: change "
                "per_device_train_batch_size, or use grpo_plugin.RemoteGRPOTrainer, which always scores whole groups"
            )
        else:
            starts = list(range(0, count, size))
        return [slice(start, end) for start, end in itertools.pairwise([*starts, count])]


@dataclass(frozen=True, slots=True)
class Call:
    """A group that was sent, and how many rows it has."""

    future: Future[GroupScores]
    rows: int


class RewardCalls:
    """One call per group, for functions that a trainer calls with the same completions."""

    def __init__(
        self, connect: Callable[[], RewardClient], functions: int, grouping: Grouping, columns: Sequence[str] | None
    ):
        """`connect` makes the client, once in each process; it is pickled, the client is not."""
        self._connect = connect
        self._functions = functions
        self._grouping = grouping
        self._columns = columns
        self._run_id = uuid.uuid4().hex
        self._processes: dict[int, _Process] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_processes": {}}

    def submit(self, function: int, completions: list[Any], row: dict[str, Any]) -> list[Call]:
        """The calls for these completions, one per group, in order; sends what no other function has sent.

        `function` numbers the caller: a function that asks for the same list again has it scored again.
        """
        here = self._here()
        return here.recent.take(function, completions, lambda: self._sent(here, completions, row))

    def _sent(self, here: _Process, completions: list[Any], row: dict[str, Any]) -> list[Call]:
        groups = self._groups(here, completions, row)
        return [Call(future, len(group)) for future, group in zip(here.client.submit_all(groups), groups, strict=True)]

    def _here(self) -> _Process:
        """By process ID, so that a forked child leaves its parent's calls alone."""
        pid = os.getpid()
        if pid not in self._processes:
            self._processes.setdefault(
                pid, _Process(self._connect(), self._functions)
            )  # of two threads, the first one's is used
        return self._processes[pid]

    def _groups(self, here: _Process, completions: list[Any], row: dict[str, Any]) -> list[Group]:
        prompts, token_ids, columns = row["prompts"], row.get("completion_ids"), self._rows_of_columns(row)
        step = getattr(row.get("trainer_state"), "global_step", 0)
        batch = next(here.batches)
        return [
            Group.of_rows(
                prompts[part],
                completions[part],
                None if token_ids is None else token_ids[part],
                columns[part],
                run_id=self._run_id,
                step=step,
                group_id=f"{self._run_id}/{here.name}/{batch}/{index}",
            )
            for index, part in enumerate(self._grouping.parts(prompts))
        ]

    def _rows_of_columns(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The columns of each row. A column may hold more values than there are rows, for a group that is not full."""
        names = [n for n in row if n not in _NOT_COLUMNS and n != "environments"]
        names = [n for n in names if self._columns is None or n in self._columns]
        return [{name: plain(row[name][index]) for name in names} for index in range(len(row["prompts"]))]


class _Process:
    """What one process has of the calls: its client, its name, and what it sent."""

    def __init__(self, client: RewardClient, functions: int):
        self.client = client
        self.name = uuid.uuid4().hex[:12]
        self.batches = itertools.count()
        self.recent = _Recent(functions)


class _Recent:
    """The calls that were sent for a list of completions and that some function may still ask for."""

    def __init__(self, functions: int) -> None:
        self._functions = functions
        self._lock = threading.Lock()
        # By the list's identity. The list is kept, so that no other list gets it.
        self._sent: OrderedDict[int, tuple[list[Any], set[int], list[Call]]] = OrderedDict()

    def take(self, function: int, completions: list[Any], send: Callable[[], list[Call]]) -> list[Call]:
        with self._lock:
            _, taken, calls = self._sent.pop(id(completions), ([], {function}, []))
            if function in taken:
                taken, calls = set(), send()
            taken.add(function)
            if len(taken) < self._functions:
                self._sent[id(completions)] = completions, taken, calls
            while len(self._sent) > _REMEMBERED:
                self._sent.popitem(last=False)
            return calls
