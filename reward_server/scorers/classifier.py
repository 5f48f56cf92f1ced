"""The scorer `classifier`: a reward model, that is a Hugging Face classifier of texts, or of tokens (process rewards).

Owns what the model sees of a completion, and what is read from its logits. The text is what trl 1.16's
GRPOTrainer._calculate_rewards gives a reward model: the chat template over prompt and completion if they are messages,
their concatenation if they are text; no special tokens are added. Knows nothing of queues or devices.

Legend: G completions of a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import Result, text_of, to_score
from reward_server.scorers.batched import BatchedScorer, Sample
from reward_server.scorers.models import ModelOptions, Models
from reward_server.types import Content, Group, Score, Status


class StepsOptions(BaseModel):
    """How a process reward model reads a completion: step by step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    separator: str = Field("\n\n", min_length=1, description="Text between the steps of a completion.")
    token: str | None = Field(
        None,
        min_length=1,
        description="Text that the model was trained to judge a step at, put after each step; the separator if unset.",
    )
    aggregate: Literal["min", "last", "mean"] = Field(
        "min", description="What the steps' scores come to: the lowest, the last or their mean."
    )


class ClassifierOptions(ModelOptions):
    """Options of `classifier`."""

    timeout_s: float = Field(
        60.0,
        gt=0,
        description="Seconds that one batch may take on the model, whosever completions are in it. Waiting is not "
        "counted.",
    )
    steps: StepsOptions | None = Field(
        None, description="For a process reward model, a classifier of tokens: a score a step. Unset, one a completion."
    )
    output: Literal["logit", "probability"] | None = Field(
        None,
        description="What of the label is the score: its logit, or its probability (softmax, sigmoid of a sole label). "
        "Unset, the logit, and the probability of steps.",
    )
    max_length: int | None = Field(
        None, ge=1, description="Most tokens of prompt and completion; what the model's positions allow if unset."
    )
    truncate: Literal["error", "left", "right"] = Field(
        "error",
        description="What becomes of a text beyond max_length. error: it gets no score but FAILED. left: the start of "
        "the prompt is cut off. right: the end of the completion is. The metric <name>/truncated is the share of a "
        "group that was cut.",
    )
    max_batch_tokens: int = Field(
        16384,
        ge=1,
        description="Tokens of one forward pass, padding included, out of any groups that wait; a longer text goes "
        "alone.",
    )
    chat_template_kwargs: dict[str, JsonValue] = Field(
        default_factory=dict, description="Passed to the tokenizer's apply_chat_template, such as enable_thinking."
    )


@dataclass(frozen=True, slots=True)
class Row:
    """What the model sees of one completion: token ids, where its steps end, and how many tokens were cut off."""

    ids: list[int]
    step_ends: tuple[int, ...] = ()
    cut_tokens: int = 0


class ClassifierScorer(BatchedScorer[ClassifierOptions]):
    """The model's score for each completion, the same whatever else is in the batch: to 1e-5 in float32, to the
    precision of `dtype` else."""

    Options = ClassifierOptions

    def __init__(self, options: ClassifierOptions):
        super().__init__(options)
        self._models: Models | None = None
        self._step_token_ids: list[int] = []
        self._max_length: int | None = options.max_length
        self._version = ""
        self.truncated = 0
        """Completions that were cut, since the start."""

    @property
    def version(self) -> str:
        """Model, weights, precision and what is cut off. Known once loaded."""
        return self._version

    @property
    def replicas(self) -> int:
        return len(self.options.devices) or 1

    @property
    def max_batch_tokens(self) -> int:
        return self.options.max_batch_tokens

    @property
    def models(self) -> Models:
        assert self._models is not None, "load() comes first"
        return self._models

    def load(self) -> None:
        steps = self.options.steps
        self._models = Models(self.options, per_token=steps is not None)
        if steps is not None:
            self._step_token_ids = self._ids([steps.token or steps.separator])[0]
            if not self._step_token_ids:
                raise ScorerLoadError(f"steps.token {steps.token or steps.separator!r} is no token of this model")
        self._max_length = self.options.max_length or self._models.positions
        self._version = f"{self._models.version}/{self._max_length}{self.options.truncate}"

    def close(self) -> None:
        self._models = None

    # --------------------------------------------------------------------------------------------- group -> samples

    def prepare(self, group: Group) -> list[Sample | Score]:
        pairs = list(zip(group.prompts(), group.contents(), strict=True))
        if self.options.steps is None:
            rows = [Row(ids) for ids in self._ids([self._text(*pair) for pair in pairs])]
        else:
            rows = [self._row_of_steps(*pair) for pair in pairs]
        return [self._sample(row) for row in rows]

    def _text(self, prompt: Content, completion: Content) -> str:
        if isinstance(prompt, str) and isinstance(completion, str):
            return prompt + completion
        if isinstance(prompt, str) or isinstance(completion, str):
            raise ValueError("prompt and completion must both be text or both be messages")
        return self._chat([*prompt, *completion])

    def _chat(self, messages: Sequence[Any], **options: Any) -> str:
        kwargs = {**self.options.chat_template_kwargs, **options}
        return self.models.tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, **kwargs)

    def _row_of_steps(self, prompt: Content, completion: Content) -> Row:
        """Steps and step tokens are tokenized apart, so that no text of a completion can stand for a step's end."""
        assert self.options.steps is not None
        start = prompt if isinstance(prompt, str) else self._chat(prompt, add_generation_prompt=True)
        steps = split_steps(text_of(completion), self.options.steps.separator)
        ids, *ids_of_steps = self._ids([start, *steps])
        ends = []
        for step in ids_of_steps:
            ids = [*ids, *step, *self._step_token_ids]
            ends.append(len(ids) - 1)
        return Row(ids, tuple(ends))

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.models.tokenizer(text=texts, add_special_tokens=False)["input_ids"]

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
        self.truncated += 1
        row = truncated(row, limit, self.options.truncate)
        if self.options.steps is not None and not row.step_ends:
            return Score(
                Status.FAILED, message=f"no step ends within max_length ({limit}) of {length} tokens; raise it"
            )
        return Sample(row, limit)

    # -------------------------------------------------------------------------------------------- samples -> scores

    def compute(self, data: Sequence[Row], replica: int) -> list[Any]:
        """A number a row, or one for each of its steps."""
        values = self._values(self.models.logits([row.ids for row in data], replica)).cpu()
        if self.options.steps is None:
            return values.tolist()
        return [values[index, list(row.step_ends)].tolist() for index, row in enumerate(data)]

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

    def _values(self, logits: Any) -> Any:
        label = self.models.label
        if (self.options.output or ("logit" if self.options.steps is None else "probability")) == "logit":
            return logits[..., label]
        return logits[..., 0].sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)[..., label]

    def _score(self, output: Any) -> Score:
        if isinstance(output, Score):
            return output
        return to_score(aggregated(output, self.options.steps.aggregate) if self.options.steps else output)


def split_steps(text: str, separator: str) -> list[str]:
    """The steps that are not blank; a text without any is one step."""
    return [step for step in text.split(separator) if step.strip()] or [text]


def aggregated(values: Sequence[float], how: Literal["min", "last", "mean"]) -> float:
    """What the scores of one completion's steps come to; NaN if one of them is no finite number."""
    if not all(map(math.isfinite, values)):
        return math.nan
    match how:
        case "min":
            return min(values)
        case "last":
            return values[-1]
        case "mean":
            return sum(values) / len(values)


def truncated(row: Row, limit: int, side: Literal["left", "right"]) -> Row:
    """At most `limit` tokens, and the steps that end among them."""
    cut = len(row.ids) - limit
    if side == "left":
        ends = tuple(end - cut for end in row.step_ends if end >= cut)
        return Row(row.ids[cut:], ends, cut)
    return replace(
        row, ids=row.ids[:limit], step_ends=tuple(end for end in row.step_ends if end < limit), cut_tokens=cut
    )
