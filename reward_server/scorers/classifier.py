"""The scorer `classifier`: a reward model that is a Hugging Face classifier of texts, or of tokens (process rewards).

Owns what the model sees of a completion, and what is read from its output. The text is what trl 1.16's
GRPOTrainer._calculate_rewards gives a reward model: the chat template over prompt and completion if they are messages,
their concatenation if they are text; no special tokens are added. Knows nothing of queues or devices.

A checkpoint with code of its own (`trust_remote_code`) may answer with any of these; B rows, T tokens, L labels:

    .score, .scores, .logits, .rewards, .reward, or a bare tensor      the first that is there; see output_field
    [B] or [B, L] for a text; [B, T] or [B, T, L] for steps            one label where the last axis is missing

Legend: G completions of a group, N rows of a batch, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import text_of
from reward_server.scorers.loading import did_you_mean
from reward_server.scorers.model_loading import Task, first_line
from reward_server.scorers.models import Models
from reward_server.scorers.steps import Row, joined_steps, split_steps
from reward_server.scorers.text_model import TextModelOptions, TextModelScorer
from reward_server.types import Content, Group

log = logging.getLogger("reward_server")

# `score` comes first: a model with several objectives gives their sum there, and the objectives as logits or rewards.
OUTPUT_FIELDS = ("score", "scores", "logits", "rewards", "reward")


class ClassifierOptions(TextModelOptions):
    """Options of `classifier`."""

    label: int | str | None = Field(
        None, description="Index or name of the label whose logit is the score; needed if the model has several."
    )
    output: Literal["logit", "probability"] | None = Field(
        None,
        description="What of the label is the score: its logit, or its probability (softmax, sigmoid of a sole label). "
        "Unset, the logit, and the probability of steps.",
    )
    output_field: str | None = Field(
        None,
        description="Which field of the model's output holds the scores, for a checkpoint with code of its own. Unset, "
        f"the first that is there of {', '.join(OUTPUT_FIELDS)}.",
    )
    suffix: str = Field(
        "",
        description="Text put after prompt and completion, at which the model was trained to score them, such as "
        "InternLM2-Reward's <|reward|>. Not with steps.",
    )


class ClassifierScorer(TextModelScorer[ClassifierOptions]):
    """The classifier's score for each completion."""

    Options = ClassifierOptions

    def __init__(self, options: ClassifierOptions):
        super().__init__(options)
        self._label = 0
        self._suffix_length = 0

    @property
    def notes(self) -> tuple[str, ...]:
        return (*super().notes, *([] if self.has_chat_template else [f"groups of messages fail: {self.no_template}"]))

    def load_models(self) -> Models:
        task: Task = "SequenceClassification" if self.options.steps is None else "TokenClassification"
        return Models(self.options, task, self._read, self.options.max_length)

    def load(self) -> None:
        super().load()
        self._suffix_length = len(self.ids([self.options.suffix])[0]) if self.options.suffix else 0
        config = self.models.config
        names = {str(name): int(index) for index, name in config.id2label.items()}
        count = self._count_labels() if self.options.trust_remote_code else int(config.num_labels)
        self._label = _label_index(names if len(names) == count else {}, count, self.options)
        if not self.has_chat_template:
            log.warning("scorer %r: groups of messages will fail, since %s", self.name, self.no_template)

    def rows(self, group: Group) -> list[Row]:
        pairs = list(zip(group.prompts(), group.contents(), strict=True))
        if self.options.steps is not None:
            return [self._row_of_steps(*pair) for pair in pairs]
        texts = [self._text(*pair) + self.options.suffix for pair in pairs]
        return [Row(ids, tail=min(self._suffix_length, len(ids))) for ids in self.ids(texts)]

    def values_on_device(self, numbers: Any) -> Any:
        """The score of the label at [N], or at [N, T] for steps, from its logits."""
        if (self.options.output or ("logit" if self.options.steps is None else "probability")) == "logit":
            return numbers[..., self._label]
        return numbers[..., 0].sigmoid() if numbers.shape[-1] == 1 else numbers.softmax(-1)[..., self._label]

    def values_of_rows(self, rows: Sequence[Row], values: Any) -> list[Any]:
        if self.options.steps is None:
            return values.tolist()
        return [values[index, list(row.step_ends)].tolist() for index, row in enumerate(rows)]

    def _text(self, prompt: Content, completion: Content) -> str:
        if isinstance(prompt, str) and isinstance(completion, str):
            return prompt + completion
        if isinstance(prompt, str) or isinstance(completion, str):
            raise ValueError("prompt and completion must both be text or both be messages")
        return self.chat([*prompt, *completion])

    def _row_of_steps(self, prompt: Content, completion: Content) -> Row:
        """Steps and step tokens are tokenized apart, so that no text of a completion can stand for a step's end."""
        assert self.options.steps is not None
        start = prompt if isinstance(prompt, str) else self.chat(prompt, add_generation_prompt=True)
        start_ids, *ids_of_steps = self.ids([start, *split_steps(text_of(completion), self.options.steps.separator)])
        return joined_steps(start_ids, ids_of_steps, self._step_token_ids)

    def _read(self, output: Any, lengths: Sequence[int]) -> Any:
        """The scores in a model's output: [N, labels], or [N, T, labels] for steps."""
        scores = scores_of(output, self.options.output_field)
        per_token = self.options.steps is not None
        rows, tokens = len(lengths), max(lengths)
        if scores.ndim == 1 + per_token:
            scores = scores[..., None]
        has_rows = scores.ndim == 2 + per_token and scores.shape[0] == rows
        if not has_rows or (per_token and scores.shape[1] < tokens):
            what = "a score for each token, since steps is set" if per_token else "a score for each text; see steps"
            raise ValueError(
                f"the model answers {rows} texts of {tokens} tokens with a tensor of shape {tuple(scores.shape)}, and "
                f"not with {what}"
            )
        return scores

    def _count_labels(self) -> int:
        """By a forward pass: the configuration of a checkpoint with code of its own often says nothing of labels."""
        try:
            return int(self.models.outputs([self.ids(["Hello there"])[0]] * 2, 0).shape[-1])
        except Exception as error:
            raise ScorerLoadError(f"model {self.options.model!r} gives no scores: {first_line(error)}") from error


def scores_of(output: Any, field: str | None) -> Any:
    """The tensor of scores in what a model returned. Raises ValueError that names the fields that are there."""
    if field is None and hasattr(output, "ndim"):
        return output
    named: Mapping[str, Any] = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    there = [name for name, value in named.items() if hasattr(value, "ndim")]
    wanted = OUTPUT_FIELDS if field is None else (field,)
    for name in wanted:
        if name in there:
            return named[name]
    raise ValueError(
        f"its output ({type(output).__name__}) has no tensor {' or '.join(wanted)}; set output_field to one of "
        f"{', '.join(there) or 'its fields, of which none is a tensor'}"
    )


def _label_index(names: Mapping[str, int], count: int, options: ClassifierOptions) -> int:
    if options.label is None and count == 1:
        return 0
    if options.label in names:
        return names[str(options.label)]
    if isinstance(options.label, int) and 0 <= options.label < count:
        return options.label
    hint = did_you_mean(str(options.label), names) or ";"
    known = f"one of {', '.join(names)}, or to an index" if names else f"an index from 0 to {count - 1}"
    raise ScorerLoadError(
        f"label {options.label!r}{hint} model {options.model!r} has {count} labels; set label to {known}"
    )
