"""What scorers share whose model reads prompt and completion as text: `classifier` and `token_probability`.

Owns their options, tokenizing, the chat template, what happens to a text that is too long, and how the scores of steps
become the score of a completion. Knows nothing of queues, nor of what a model's output means.

Legend: G completions of a group, N rows of a batch, T tokens.
"""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import Field, JsonValue

from reward_server.errors import InvalidGroupError, ScorerLoadError
from reward_server.scorers.base import Result, to_score
from reward_server.scorers.batched import BatchedScorer, Sample
from reward_server.scorers.loading import find_path
from reward_server.scorers.model_loading import ModelOptions, code_of
from reward_server.scorers.models import Models
from reward_server.scorers.steps import Row, StepsOptions, aggregated, truncated
from reward_server.types import Group, Score, Status

log = logging.getLogger("reward_server")


class TextModelOptions(ModelOptions):
    """Options of every scorer whose model reads prompt and completion."""

    timeout_s: float = Field(
        60.0,
        gt=0,
        description="Seconds that one batch may take on the model, whichever callers its completions come from. "
        "Waiting is not counted.",
    )
    steps: StepsOptions | None = Field(
        None, description="For a process reward model: a score for each step. Unset, one for the whole completion."
    )
    max_length: int | None = Field(
        None, ge=1, description="Most tokens of prompt and completion; what the model's positions allow if unset."
    )
    truncate: Literal["error", "left", "right"] = Field(
        "error",
        description="What happens to a text that is longer than max_length. error: its score is FAILED. left: its "
        "start is cut off. right: its end is cut off. classifier cuts prompt and completion as one text, "
        "token_probability the completion only. The metric <name>/truncated is the share of a group that was cut.",
    )
    max_batch_tokens: int = Field(
        16384,
        ge=1,
        description="Tokens of one forward pass, its padding included if rows are padded, out of any groups that wait; "
        "a longer text goes alone.",
    )
    chat_template: str | None = Field(
        None,
        description="A chat template (Jinja), or a file that holds one, in place of the tokenizer's. Needed for "
        "messages if the tokenizer has none.",
    )
    chat_template_kwargs: dict[str, JsonValue] = Field(
        default_factory=dict, description="Passed to the tokenizer's apply_chat_template, such as enable_thinking."
    )


OptionsT = TypeVar("OptionsT", bound=TextModelOptions)


class TextModelScorer(BatchedScorer[OptionsT]):
    """The model's score for each completion, the same whatever else is in the batch: to 1e-5 in float32, else to the
    precision of `dtype`."""

    def __init__(self, options: OptionsT):
        super().__init__(options)
        self._models: Models | None = None
        self._step_token_ids: list[int] = []
        self._max_length: int | None = options.max_length
        self.truncated = 0
        """Completions that were cut, since the start."""

    @property
    def replicas(self) -> int:
        return len(self.options.devices) or 1

    @property
    def max_batch_tokens(self) -> int:
        return self.options.max_batch_tokens

    @property
    def pads(self) -> bool:
        return self.models.choice.form == "padded"

    @property
    def models(self) -> Models:
        assert self._models is not None, "load() comes first"
        return self._models

    @property
    def notes(self) -> tuple[str, ...]:
        """The form of rows in a forward pass, and that code of the checkpoint runs here, if it does."""
        form = str(self.models.choice)
        if not self.options.trust_remote_code or not (code := code_of(self.models.config)):
            return (form,)
        return (form, f"trust_remote_code: code of the checkpoint runs in the server: {', '.join(code)}")

    @abstractmethod
    def load_models(self) -> Models:
        """The model of this kind of scorer. Raises ScorerLoadError."""

    @abstractmethod
    def rows(self, group: Group) -> list[Row]:
        """What the model sees of each completion, G long."""

    @abstractmethod
    def values_on_device(self, numbers: Any) -> Any:
        """The values that are read, from what the model gives, on its device."""

    @abstractmethod
    def values_of_rows(self, rows: Sequence[Row], values: Any) -> list[Any]:
        """A number for each row, or one for each of its steps, from the values of a forward pass."""

    def load(self) -> None:
        self._models = self.load_models()
        template = self._chat_template()
        if (steps := self.options.steps) is not None:
            self._step_token_ids = self.ids([steps.token or steps.separator])[0]
            if not self._step_token_ids:
                raise ScorerLoadError(f"steps.token {steps.token or steps.separator!r} is no token of this model")
        self._max_length = self.options.max_length or self._models.positions
        self._version = f"{self._models.version}/{self._max_length}{self.options.truncate}{template}"

    def close(self) -> None:
        self._models = None

    def prepare(self, group: Group) -> list[Sample | Score]:
        return [self._sample(row) for row in self.rows(group)]

    def assemble(self, data: Sequence[Row]) -> list[tuple[Sequence[Row], Any]]:
        """The rows of each forward pass, and their tensors on the host."""
        models = self.models
        passes = [(rows, [row.ids for row in rows]) for rows in models.passes(data)]
        return [(rows, models.assemble(ids, [_places(row) for row in rows])) for rows, ids in passes]

    def compute(self, batch: Sequence[tuple[Sequence[Row], Any]], replica: int) -> list[tuple[Sequence[Row], Any]]:
        models = self.models
        return [(rows, models.launch(tensors, replica, self.values_on_device)) for rows, tensors in batch]

    def read(self, computed: Sequence[tuple[Sequence[Row], Any]]) -> list[Any]:
        """A number for each row, or one for each of its steps."""
        return [value for rows, outputs in computed for value in self.values_of_rows(rows, outputs.read())]

    def finish(self, prepared: Sequence[Sample | Score], outputs: Sequence[Any]) -> Result:
        scores = tuple(self._score(output) for output in outputs)
        metrics = {}
        if self.options.truncate != "error":
            cut = sum(isinstance(item, Sample) and item.data.cut_tokens > 0 for item in prepared)
            metrics[f"{self.name}/truncated"] = cut / len(prepared)
        if self.options.steps is None:
            return Result(scores, metrics)
        steps = [output if isinstance(output, list) else None for output in outputs]
        return Result(scores, metrics, {f"{self.name}/steps": steps})

    # ------------------------------------------------------------------------------------------------------------ text

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens around them."""
        return self.models.tokenizer(text=texts, add_special_tokens=False)["input_ids"]

    def chat(self, messages: Sequence[Any], **options: Any) -> str:
        """Messages as text. Raises InvalidGroupError if there is no chat template."""
        if not self.has_chat_template:
            raise InvalidGroupError(f"scorer {self.name!r}: the group holds messages, and {self.no_template}")
        kwargs = {**self.options.chat_template_kwargs, **options}
        return self.models.tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, **kwargs)

    @property
    def has_chat_template(self) -> bool:
        return bool(self.models.tokenizer.chat_template)

    @property
    def no_template(self) -> str:
        """What is said where a chat template is missing."""
        return (
            f"the tokenizer of model {self.options.model!r} has no chat template; set chat_template to one (Jinja text "
            "or a file), or send prompts and completions as text"
        )

    def _chat_template(self) -> str:
        """Sets the template of the options, and gives its part of the version."""
        given = self.options.chat_template
        if given is None:
            return ""
        file = find_path(given, self.options.base_dir) if "{" not in given else None
        if file is None and "{" not in given:
            raise ScorerLoadError(
                f"scorer {self.name!r}: chat_template {given!r} is neither a file in {self.options.base_dir} nor a "
                "Jinja template"
            )
        text = given if file is None else file.read_text(encoding="utf-8")
        self.models.tokenizer.chat_template = text
        return f"/template-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    # ---------------------------------------------------------------------------------------------------- rows, scores

    def _sample(self, row: Row) -> Sample | Score:
        length, limit = len(row.ids), self._max_length
        if not length:
            return Score(Status.FAILED, message="prompt and completion are empty: there is nothing to score")
        if limit is None or length <= limit:
            return Sample(row, length)
        if self.options.truncate == "error":
            return Score(
                Status.FAILED,
                message=f"{length} tokens of prompt and completion are beyond max_length ({limit}); raise it, or set "
                "truncate to left or right",
            )
        cut = truncated(row, limit, self.options.truncate)
        if cut is None:
            return Score(
                Status.FAILED,
                message=f"{row.head + row.tail} tokens around the completion are beyond max_length ({limit}); raise it",
            )
        self.truncated += 1
        if self.options.steps is not None and not cut.step_ends:
            return Score(
                Status.FAILED, message=f"no step ends within max_length ({limit}) of {length} tokens; raise it"
            )
        return Sample(cut, limit)

    def _score(self, output: Any) -> Score:
        if isinstance(output, Score):
            return output
        return to_score(aggregated(output, self.options.steps.aggregate) if self.options.steps else output)


def _places(row: Row) -> tuple[int, ...]:
    """The positions at which a row is scored."""
    return row.step_ends or (len(row.ids) - 1,)
