"""What a scorer is: the one protocol that every kind fulfils, ours and a third party's.

Owns the base class, the options that all scorers share, and the turning of raw return values into scores. Knows nothing
of gRPC, of queues or of processes: a scorer says where it wants to run (`place`) and the service sees to it.

Legend: G completions of a group.
"""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from reward_server.errors import InvalidGroupError
from reward_server.types import Content, Group, Score, Status


class ExecutorKind(enum.Enum):
    """Where a scorer runs, so that nothing blocks the server's event loop."""

    LOOP = "loop"
    """On the event loop: `score` is async, or takes microseconds."""
    THREAD = "thread"
    """In a thread of its own: a model that releases the GIL."""
    BATCH = "batch"
    """In a thread a device, in batches of several groups: a BatchedScorer."""
    WORKER = "worker"
    """In a worker process's main thread: a synchronous function, which may hang and is then killed."""


Place = ExecutorKind
"""An alias of ExecutorKind, which was called Place at first: scorers of third parties import it."""


class ScorerOptions(BaseModel):
    """The options that every scorer has. A kind adds its own by subclassing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str = Field(description="Kind of the scorer: a built-in name, an entry point's, or module:attribute.")
    name: str = Field(min_length=1, description="Name of the scorer in metrics and weights; unique on the server.")
    weight: float = Field(1.0, allow_inf_nan=False, description="What the reward weighs this scorer's score by.")
    timeout_s: float = Field(60.0, gt=0, description="Seconds that scoring one group may take once it runs.")

    _base_dir: str = PrivateAttr("")

    def model_post_init(self, context: Any, /) -> None:
        self._base_dir = str((context or {}).get("base_dir", ""))

    @property
    def base_dir(self) -> Path:
        """The configuration file's folder, in which relative paths are looked up first.

        No part of the configuration's digest: the same options mean the same scores wherever the file lies.
        """
        return Path(self._base_dir)


@dataclass(frozen=True, slots=True)
class Result:
    """What `Scorer.score` returns: G scores, and what a function logged by TRL's `log_metric` and `log_extra`."""

    scores: tuple[Score, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)


OptionsT = TypeVar("OptionsT", bound=ScorerOptions)


class Scorer(ABC, Generic[OptionsT]):
    """One source of scores.

    A third party's scorer subclasses this, names its options' class and implements `score`; it enters by the entry
    point group `reward_server.scorers` or by `type: module:attribute`.

    The life: built from options (cheap, no import of the user's code, no model), `load()` once in the process and place
    where it will run, `score()` for each group, `close()`.
    """

    Options: ClassVar[type[ScorerOptions]] = ScorerOptions
    place: ExecutorKind = ExecutorKind.WORKER
    deterministic: bool = True
    """The same group gets the same scores in every run and at every step. Where `cache` is on, they are kept."""
    group_aware: bool = False
    """A completion's score depends on its siblings."""
    _version = "1"

    def __init__(self, options: OptionsT):
        self.options = options

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def version(self) -> str:
        """Changes when the scores may: goes into every response and into the configuration's digest.

        A scorer that learns its version while it loads sets `_version` there.
        """
        return self._version

    @property
    def notes(self) -> tuple[str, ...]:
        """What the operator should know of the loaded scorer, a sentence each: `reward-server check` prints them."""
        return ()

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns of the dataset without which this scorer cannot score."""
        return ()

    @property
    def concurrency(self) -> int | None:
        """Most groups that may be in `score` at once; None leaves it to the server."""
        return None

    def column(self, group: Group, name: str) -> list[Any]:
        """The values of a column, G long. Raises InvalidGroupError that names the column and those that are there."""
        try:
            return group.column(name)
        except KeyError as error:
            raise InvalidGroupError(
                f"scorer {self.name!r} needs the column {name!r}, and the group has {group.column_names() or 'none'}; "
                "add it to the dataset or rename one there, and see that it is sent to the service"
            ) from error

    def token_ids(self, group: Group) -> list[list[int]]:
        """The token ids of each completion, G lists. Raises InvalidGroupError if they were not sent.

        An empty completion has none to send: its list is empty.
        """
        if not any(completion.token_ids for completion in group.completions):
            raise InvalidGroupError(
                f"scorer {self.name!r} needs the completions' token ids, and they were not sent; set "
                "reward_token_ids=True in the trainer's configuration"
            )
        return [list(completion.token_ids or ()) for completion in group.completions]

    def preload(self) -> None:
        """What of `load` takes time and may be done in any thread: imports. What it raises is left for `load` to say.

        Called before `load` for a scorer on the event loop, on which nothing may block while other groups are scored.
        """

    def load(self) -> Awaitable[None] | None:
        """Imports user code, reads a model. Raises ScorerLoadError. Called once, where the scorer will run.

        May be async on the event loop, as `close` may.
        """

    @abstractmethod
    def score(self, group: Group) -> Result | Awaitable[Result]:
        """Scores one group. May raise: the service turns that into FAILED for all G completions."""

    def close(self) -> Awaitable[None] | None:
        """Frees what `load` took. May be async where it runs on the event loop."""
        return None


def text_of(content: Content) -> str:
    """The text of a completion: itself, or what the assistant's messages of a conversation say, one after another."""
    if isinstance(content, str):
        return content
    said = [message.get("content") for message in content if message.get("role", "assistant") == "assistant"]
    return "".join(_text_of_message(parts) for parts in said)


def _text_of_message(parts: Any) -> str:
    """A message's content is text, null (only tool calls), or a list of parts of which some are text."""
    if isinstance(parts, str):
        return parts
    return "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in parts or ())


def to_score(value: Any) -> Score:
    """One raw return value as a score: a finite number is OK, None is not applicable, all else is INVALID.

    Takes what `torch.tensor` would take of a TRL reward function: int, float, bool, NumPy and torch scalars.
    """
    if value is None:
        return Score(Status.NOT_APPLICABLE)
    if isinstance(value, (str, bytes)):
        return Score(Status.INVALID, message=f"returned the string {value!r:.80}, not a number")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return Score(Status.INVALID, message=f"returned {value!r:.80} of type {type(value).__name__}, not a number")
    if not math.isfinite(number):
        return Score(Status.INVALID, message=f"returned {number}, not a finite number")
    return Score(Status.OK, number)


def to_scores(values: Any, expected: int) -> tuple[Score, ...]:
    """What a function returned for G completions, as G scores; a wrong number of them makes all G INVALID."""
    try:
        values = list(values)
    except TypeError:
        message = f"returned {values!r:.80} of type {type(values).__name__}, not a list of {expected} scores"
        return failed(expected, Status.INVALID, message)
    if len(values) != expected:
        return failed(expected, Status.INVALID, f"returned {len(values)} scores for {expected} completions")
    return tuple(to_score(value) for value in values)


def failed(count: int, status: Status, message: str) -> tuple[Score, ...]:
    """The same failure for `count` completions."""
    return (Score(status, message=message),) * count
