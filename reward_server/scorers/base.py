"""The base class of scorers: the interface of every kind, ours and a third party's.

Owns that class, the options that all scorers share, and the conversion of raw return values into scores. Knows nothing
of gRPC, queues or processes: a scorer names the kind of executor that it needs (`place`), and the service provides it.

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
from reward_server.frozen import quick
from reward_server.types import Content, Group, Score, Status


class ExecutorKind(enum.Enum):
    """The kinds of executors. They differ in where a scorer runs; no scorer may block the server's event loop."""

    LOOP = "loop"
    """On the event loop. For scorers whose `score` is async, or takes microseconds."""
    THREAD = "thread"
    """In threads of its own. For models that release the GIL, and for functions that wait for another service."""
    BATCH = "batch"
    """In one thread for each device, in batches of several groups. For a BatchedScorer."""
    WORKER = "worker"
    """In the main thread of a worker process. For synchronous functions: one that hangs is killed with its process."""


Place = ExecutorKind
"""The former name of ExecutorKind; third parties' scorers import it."""


class ScorerOptions(BaseModel):
    """The options that every scorer has. Each kind of scorer adds its own by subclassing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str = Field(description="Kind of the scorer: a built-in name, an entry point's, or module:attribute.")
    name: str = Field(min_length=1, description="Name of the scorer in metrics and weights; unique on the server.")
    weight: float = Field(1.0, allow_inf_nan=False, description="Weight of this scorer's score in the reward.")
    timeout_s: float = Field(60.0, gt=0, description="Seconds that scoring one group may take, from its start.")

    _base_dir: str = PrivateAttr("")

    def model_post_init(self, context: Any, /) -> None:
        self._base_dir = str((context or {}).get("base_dir", ""))

    @property
    def base_dir(self) -> Path:
        """The configuration file's folder. Relative paths are looked up there first.

        It is not part of the configuration's digest: the same options mean the same scores wherever the file is.
        """
        return Path(self._base_dir)


@quick
@dataclass(frozen=True, slots=True)
class Result:
    """What `Scorer.score` returns: G scores, and what a function has logged by TRL's `log_metric` and `log_extra`.

    A metric is one number for the group. An extra column has G values.
    """

    scores: tuple[Score, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)


OptionsT = TypeVar("OptionsT", bound=ScorerOptions)


class Scorer(ABC, Generic[OptionsT]):
    """One source of scores.

    A third party's scorer subclasses this class, sets `Options` to the class of its options and implements `score`. It
    is registered in the entry-point group `reward_server.scorers`, or named in a configuration as
    `type: module:attribute`.

    The server constructs it from its options, calls `load()` once where it will run, `score()` for each group, and
    `close()` at the end. The constructor must be cheap: it imports no user code and loads no model.
    """

    Options: ClassVar[type[ScorerOptions]] = ScorerOptions
    place: ExecutorKind = ExecutorKind.WORKER
    """The kind of executor that runs this scorer."""
    deterministic: bool = True
    """Whether a group gets the same scores in every run and at every step. The cache, if it is on, then keeps them."""
    group_aware: bool = False
    """Whether a completion's score depends on the other completions of its group."""
    _version = "1"

    def __init__(self, options: OptionsT):
        self.options = options

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def version(self) -> str:
        """A string that must change whenever scores may change. It is part of every response and of the digest.

        A scorer that learns its version while it loads sets `_version` there.
        """
        return self._version

    @property
    def notes(self) -> tuple[str, ...]:
        """What the operator should know of the loaded scorer, one sentence each: `reward-server check` prints them."""
        return ()

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The dataset's columns that this scorer needs."""
        return ()

    @property
    def sample_columns(self) -> Mapping[str, Any]:
        """Values for those of its columns in which a made-up sample's text "4" could not be read."""
        return {}

    @property
    def concurrency(self) -> int | None:
        """The maximum number of groups that may be in `score` at once; None leaves it to the server."""
        return None

    def column(self, group: Group, name: str) -> list[Any]:
        """The G values of a column. Raises InvalidGroupError, which names the column and the columns of the group."""
        try:
            return group.column(name)
        except KeyError as error:
            raise InvalidGroupError(
                f"scorer {self.name!r} needs the column {name!r}, and the group has {group.column_names() or 'none'}; "
                "add it to the dataset or rename one there, and make sure that it is sent to the service"
            ) from error

    def token_ids(self, group: Group) -> list[list[int]]:
        """The token ids of each completion, as G lists; that of an empty completion is empty.

        Raises InvalidGroupError if they were not sent.
        """
        if not any(completion.token_ids for completion in group.completions):
            raise InvalidGroupError(
                f"scorer {self.name!r} needs the completions' token ids, and they were not sent; set "
                "reward_token_ids=True in the trainer's configuration (the adapters for other trainers send none)"
            )
        return [list(completion.token_ids or ()) for completion in group.completions]

    def preload(self) -> None:
        """Does the slow part of `load` that may run in any thread, such as imports.

        It is called before `load` for a scorer on the event loop, which must not block while other groups are scored.
        Its exceptions are ignored: `load` raises them again.
        """

    def load(self) -> Awaitable[None] | None:
        """Imports user code or loads a model. It is called once, where the scorer will run. Raises ScorerLoadError.

        For a scorer on the event loop, `load` and `close` may be async.
        """

    @abstractmethod
    def score(self, group: Group) -> Result | Awaitable[Result]:
        """Scores one group. If it raises, the service tries the completions one by one; those that raise get FAILED."""

    def close(self) -> Awaitable[None] | None:
        """Frees what `load` has allocated."""
        return None


def text_of(content: Content) -> str:
    """The text of a completion: the string itself, or the joined texts of a conversation's assistant messages."""
    if isinstance(content, str):
        return content
    said = [message.get("content") for message in content if message.get("role", "assistant") == "assistant"]
    return "".join(_text_of_message(parts) for parts in said)


def _text_of_message(parts: Any) -> str:
    """The text of a message's content, which is a string, null (tool calls only), or a list of parts."""
    if isinstance(parts, str):
        return parts
    return "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in parts or ())


def to_score(value: Any) -> Score:
    """Converts one raw return value: a finite number is OK, None is NOT_APPLICABLE, everything else is INVALID.

    It accepts what `torch.tensor` accepts of a TRL reward function: int, float, bool, NumPy and torch scalars.
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
    """Converts what a function returned for G completions to G scores. If their number is wrong, all are INVALID."""
    try:
        values = list(values)
    except TypeError:
        message = f"returned {values!r:.80} of type {type(values).__name__}, not a list of {expected} scores"
        return failed(expected, Status.INVALID, message)
    if len(values) != expected:
        return failed(expected, Status.INVALID, f"returned {len(values)} scores for {expected} completions")
    return tuple(to_score(value) for value in values)


def failed(count: int, status: Status, message: str) -> tuple[Score, ...]:
    """The same failed score for `count` completions."""
    return (Score(status, message=message),) * count
