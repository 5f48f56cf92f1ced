"""Scorers that call a function of the user's: with TRL's signature, or with a whole group.

Owns the calling convention: which arguments a function gets, where it runs, and how its logged values are collected.
Knows nothing of processes or time limits: the service kills a function that hangs.

    f(prompts, completions, completion_ids=…, **columns) -> list[float | None]      type: function
    f(group) -> list[float | None]                                                  type: group_function

Legend: G completions of a group.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue, field_validator

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import ExecutorKind, Result, Scorer, ScorerOptions, to_scores
from reward_server.scorers.loading import (
    did_you_mean,
    is_async_callable,
    is_async_function,
    load_attribute,
    source_digest,
    split_target,
    user_traceback,
)
from reward_server.types import Content, Group

# What TRL passes beside the dataset's columns (trl 1.16, GRPOTrainer._calculate_rewards). `environments` are objects of
# the trainer's process and cannot come here.
STANDARD = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
# The columns that TRL keeps from functions, since the standard arguments say the same.
HIDDEN_COLUMNS = ("prompt", "completion", "completion_ids")


class FunctionOptions(ScorerOptions):
    """Options of `function` and `group_function`."""

    function: str = Field(
        description="module:attribute or path/to/file.py:attribute; files are looked up in the folder of the "
        "configuration, then in the working folder."
    )
    factory: bool = Field(False, description="Call `function` with `kwargs` once; what it returns is the function.")
    kwargs: dict[str, JsonValue] = Field(
        default_factory=dict, description="Keyword arguments passed with every call, or to the factory if it is one."
    )
    place: Literal["auto", "loop", "thread", "worker"] = Field(
        "auto",
        description="Where it runs. loop: on the server's event loop, many groups at once (async functions only). "
        "thread: in a thread, for a synchronous function that waits for I/O; it cannot be killed when it hangs. "
        "worker: in a process of its own, which is killed when it hangs. auto: loop if it is an `async def` in its "
        "module's source, else worker.",
    )
    concurrency: int | None = Field(
        None, ge=1, description="Most groups that it scores at once; the server's default if unset."
    )
    deterministic: bool = Field(
        False,
        description="Whether the same group gets the same scores at every step and in every run, so that they may be "
        "cached. The version is a digest of the function's own file: with cache.path set, the modules that it imports "
        "must not change either.",
    )
    required_columns: tuple[str, ...] = Field(
        (), description="Columns that it needs beyond those in its signature, such as kwargs['answer']."
    )

    @field_validator("function")
    @classmethod
    def _has_the_form(cls, target: str) -> str:
        split_target(target)
        return target


class TRLFunctionOptions(FunctionOptions):
    """Options of `function`."""

    group_aware: bool = Field(
        False,
        description="Whether a score depends on the rest of the group, which is then never scored in parts.",
    )


class _CallableScorer(Scorer[FunctionOptions]):
    """The base of both kinds: finds the function, decides where it runs, and awaits it there.

    The version is a digest of the source file that defines the function, known once it is loaded.
    """

    Options: ClassVar[type[ScorerOptions]] = FunctionOptions

    def __init__(self, options: FunctionOptions):
        super().__init__(options)
        self.place = _place(options)
        self.deterministic = options.deterministic
        self._function: Callable[..., Any] = _not_loaded
        self._runner: asyncio.Runner | None = None
        self._bound: dict[str, Any] = {} if options.factory else dict(options.kwargs)

    @property
    def required_columns(self) -> tuple[str, ...]:
        return self.options.required_columns

    @property
    def concurrency(self) -> int | None:
        return self.options.concurrency

    def preload(self) -> None:
        load_attribute(self.options.function, self.options.base_dir)

    def load(self) -> None:
        named = load_attribute(self.options.function, self.options.base_dir)
        self._function = self._made(named) if self.options.factory else self._checked(named)
        self._version = source_digest(named, self._function)
        if self.place is ExecutorKind.LOOP and not is_async_callable(self._function):
            raise ScorerLoadError(
                f"{self.options.function} is not async and would block the server's event loop; make it an async def, "
                "or set place to thread or worker"
            )

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()

    def _made(self, factory: Any) -> Callable[..., Any]:
        try:
            function = factory(**self.options.kwargs)
        except Exception as error:
            raise ScorerLoadError(
                f"{self.options.function}: the factory raised for kwargs {self.options.kwargs}\n{user_traceback(error)}"
            ) from error
        return self._checked(function)

    def _checked(self, function: Any) -> Callable[..., Any]:
        if isinstance(function, type) or not callable(function):
            raise ScorerLoadError(
                f"{self.options.function} gives {function!r:.80} of type {type(function).__name__}, not a function; "
                "if it makes one, set factory: true"
            )
        return function

    def _call(self, log: _Log, *positional: Any, **keywords: Any) -> Result | Awaitable[Result]:
        values = self._function(*positional, **keywords)
        if not inspect.isawaitable(values):
            return log.result(values)
        answer = _awaited(values, log)
        if self.place is ExecutorKind.LOOP:
            return answer
        if self.place is ExecutorKind.THREAD:  # many of them, and an event loop belongs to one
            return asyncio.run(answer)
        # One event loop for the scorer's life, since clients in user code belong to the loop that first used them.
        self._runner = self._runner or asyncio.Runner()
        return self._runner.run(answer)


class GroupFunctionScorer(_CallableScorer):
    """Calls `f(group)`, sync or async, which returns G scores: for relative scores, such as a rank."""

    group_aware = True

    def score(self, group: Group) -> Result | Awaitable[Result]:
        return self._call(_Log(len(group)), group, **self._bound)


class FunctionScorer(_CallableScorer):
    """Calls a reward function with TRL's signature, as it is; None means not applicable.

    As TRL does, it passes everything by keyword: `prompts`, `completions`, `completion_ids` (if they were sent), each
    column as G values, `trainer_state` (with `global_step`), `log_extra`, `log_metric`. A function without **kwargs
    gets only what its signature names.
    """

    Options = TRLFunctionOptions

    def __init__(self, options: TRLFunctionOptions):
        super().__init__(options)
        self.group_aware = options.group_aware
        self._parameters: frozenset[str] | None = None
        """The names that the function takes; None for all, by **kwargs."""
        self._required: tuple[str, ...] = ()

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The columns of the options and the parameters without a default. Known once loaded."""
        named = [name for name in self._required if name not in STANDARD]
        return tuple(dict.fromkeys([*self.options.required_columns, *named]))

    def load(self) -> None:
        super().load()
        try:
            parameters = inspect.signature(self._function).parameters.values()
        except (TypeError, ValueError):  # a compiled function without a signature
            return
        self._read_signature(list(parameters))

    def score(self, group: Group) -> Result | Awaitable[Result]:
        log = _Log(len(group))
        return self._call(log, **self._arguments(group, log))

    def _read_signature(self, parameters: Sequence[inspect.Parameter]) -> None:
        by_keyword = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            self._parameters = frozenset(p.name for p in by_keyword)
        self._required = tuple(p.name for p in by_keyword if p.default is p.empty and p.name not in self._bound)
        self._check_signature(parameters)

    def _check_signature(self, parameters: Sequence[inspect.Parameter]) -> None:
        target = self.options.function
        if self._parameters is not None and (unknown := sorted(self._bound.keys() - self._parameters)):
            hint = did_you_mean(unknown[0], self._parameters)
            raise ScorerLoadError(f"{target} takes no argument {unknown[0]!r}, which kwargs gives it{hint}")
        if "environments" in self._required:
            raise ScorerLoadError(
                f"{target} needs `environments`, live objects of the trainer's process that cannot be sent; keep it "
                "among the trainer's own reward_funcs"
            )
        if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
            raise ScorerLoadError(f"{target} has positional-only parameters; reward functions are called by keyword")

    def _arguments(self, group: Group, log: _Log) -> dict[str, Any]:
        arguments = {
            **{name: self.column(group, name) for name in self.required_columns},
            **{name: _column(group, name) for name in group.column_names() if name not in HIDDEN_COLUMNS},
            "prompts": [_own_copy(prompt) for prompt in group.prompts()],
            "completions": [_own_copy(content) for content in group.contents()],
            "trainer_state": SimpleNamespace(global_step=group.step),
            "log_extra": log.extra,
            "log_metric": log.metric,
        }
        if "completion_ids" in self._required or any(c.token_ids for c in group.completions):
            arguments["completion_ids"] = self.token_ids(group)
        arguments |= self._bound
        if self._parameters is None:
            return arguments
        return {name: value for name, value in arguments.items() if name in self._parameters}


def _place(options: FunctionOptions) -> ExecutorKind:
    if options.place != "auto":
        return ExecutorKind(options.place)
    is_async = not options.factory and is_async_function(options.function, options.base_dir)
    return ExecutorKind.LOOP if is_async else ExecutorKind.WORKER


def _not_loaded(*_: Any, **__: Any) -> Any:
    raise AssertionError("load() comes before score()")


async def _awaited(values: Awaitable[Any], log: _Log) -> Result:
    return log.result(await values)


def _column(group: Group, name: str) -> list[Any]:
    """G values; None for a completion without the column, as a dataset gives it for such a row."""
    return [completion.columns.get(name, group.columns.get(name)) for completion in group.completions]


def _own_copy(content: Content) -> Content:
    """A function may edit its messages in place; the group is shared with other scorers."""
    return content if isinstance(content, str) else [dict(message) for message in content]


class _Log:
    """Collects what a function logs while it scores one group."""

    def __init__(self, size: int):
        self._size = size
        self._extra: defaultdict[str, list[Any]] = defaultdict(list)
        self._metrics: defaultdict[str, list[float]] = defaultdict(list)

    def extra(self, column: str, values: Sequence[Any]) -> None:
        """TRL's `log_extra`: values of a column of the completions' table; calls of one name add up to G."""
        self._extra[column].extend(values)

    def metric(self, name: str, value: float) -> None:
        """TRL's `log_metric`: values of one name are averaged."""
        self._metrics[name].append(float(value))

    def result(self, values: Any) -> Result:
        """What the function returned, as scores, with what it logged."""
        metrics = {name: sum(logged) / len(logged) for name, logged in self._metrics.items()}
        return Result(to_scores(values, self._size), metrics, dict(self._extra))
