"""The scorer `token_probability`: a causal language model is asked about a completion, and a score is read from the
probability of its next token.

Owns the question, the tokens whose probability counts, and reading it from the logits. Batches, steps and aggregation
are shared with `classifier`. Knows nothing of queues or devices.

    score = P(yes) / (P(yes) + P(no))       at the end of the question, with positive: [yes], negative: [no]
    score = P(+) / (P(+) + P(-))            at the step token behind each step, with `steps`: Math-Shepherd
                                            (arXiv 2312.08935) and models trained like it
    score = P(yes)                          against all tokens of the vocabulary, without `negative`

Control tokens in prompt and completion are broken by a space, so that no text can end the question and answer it.

Legend: G completions of a group, N rows of a batch, T tokens, P positions that are read, V tokens of the vocabulary.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

from pydantic import Field, model_validator

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import text_of
from reward_server.scorers.models import Models
from reward_server.scorers.steps import Row, joined_steps, split_steps
from reward_server.scorers.templates import TextTemplate, check_names, conversation, defused, shown
from reward_server.scorers.text_model import TextModelOptions, TextModelScorer
from reward_server.types import Content, Group

DEFAULT_QUESTION = """\
Question:
{{ prompt }}

Answer:
{{ completion }}

Is the answer correct? Reply with yes or no, and nothing else."""
_NAMES = ("prompt", "completion", "columns")


class TokenProbabilityOptions(TextModelOptions):
    """Options of `token_probability`."""

    question: str = Field(
        DEFAULT_QUESTION,
        min_length=1,
        description="What the model is asked, a Jinja template with {{ prompt }}, {{ completion }} and the dataset's "
        "columns as {{ columns.NAME }}.",
    )
    system: str | None = Field(None, description="System message before the question; only with form: chat.")
    form: Literal["chat", "text"] = Field(
        "chat",
        description="chat: the question is a user's message in the model's chat template, and the answer is due. text: "
        "the question is given as it is, for models that are no chat models.",
    )
    add_bos: bool | None = Field(
        None,
        description="Begin with the special tokens that the tokenizer puts before a text, such as <s>. Unset, only "
        "with form: text, since a chat template writes them itself.",
    )
    positive: tuple[str | int, ...] = Field(
        ("yes", "Yes"),
        min_length=1,
        description="Tokens whose probabilities add up to the score: each a text that is one token of the model, or a "
        "token's id.",
    )
    negative: tuple[str | int, ...] = Field(
        ("no", "No"),
        description="Tokens that they are set against: the score is the positive share of both. Empty, the score is "
        "the probability among all tokens of the vocabulary.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TokenProbabilityOptions:
        if both := sorted({str(token) for token in self.positive} & {str(token) for token in self.negative}):
            raise ValueError(f"{both[0]!r} is in positive and in negative; leave it in one of them")
        if self.system is not None and self.form == "text":
            raise ValueError("system is for form: chat; with form: text write it into the question")
        return self


class TokenProbabilityScorer(TextModelScorer[TokenProbabilityOptions]):
    """The probability of the positive tokens after the question, or after each step."""

    Options = TokenProbabilityOptions

    def __init__(self, options: TokenProbabilityOptions):
        super().__init__(options)
        self._question: TextTemplate | None = None
        self._first_ids: list[int] = []
        self._positive: list[int] = []
        self._negative: list[int] = []

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Known once loaded: the question names them."""
        return () if self._question is None else self._question.columns

    def load_models(self) -> Models:
        return NextTokenModels(self.options)

    def load(self) -> None:
        where = f"scorer {self.name!r}: question"
        self._question = TextTemplate(self.options.question, where)
        check_names(self._question.names, _NAMES, ["completion"], where)
        super().load()
        if self.options.form == "chat" and not self.has_chat_template:
            raise ScorerLoadError(f"scorer {self.name!r}: {self.no_template}; or set form: text")
        if self.options.add_bos or (self.options.add_bos is None and self.options.form == "text"):
            self._first_ids = self._special_tokens_before()
        self._around("prompt", dict.fromkeys(self.required_columns, ""))  # raises for a question that cannot be asked
        self._positive = [self._token_id(token) for token in self.options.positive]
        self._negative = [self._token_id(token) for token in self.options.negative]
        if clash := set(self._positive) & set(self._negative):
            raise ScorerLoadError(f"scorer {self.name!r}: token {clash.pop()} is both positive and negative")

    def rows(self, group: Group) -> list[Row]:
        columns = {name: self.column(group, name) for name in self.required_columns}
        prompts = group.prompts()
        return [
            self._row(prompts[index], content, {name: values[index] for name, values in columns.items()})
            for index, content in enumerate(group.contents())
        ]

    def values_on_device(self, numbers: Any) -> Any:
        """The probability at each position, [P], from the logits of all tokens, [P, V]."""
        positive = numbers[:, self._positive].logsumexp(-1)
        if not self._negative:
            return (positive - numbers.logsumexp(-1)).exp()
        return (positive - numbers[:, [*self._positive, *self._negative]].logsumexp(-1)).exp()

    def values_of_rows(self, rows: Sequence[Row], values: Any) -> list[Any]:
        """A probability for each row, or one for each of its steps."""
        if self.options.steps is None:
            return values.tolist()
        left = iter(values.tolist())
        return [[next(left) for _ in row.step_ends] for row in rows]

    def _row(self, prompt: Content, completion: Content, columns: dict[str, Any]) -> Row:
        """A row whose middle is the completion. Whole texts are tokenized as one where nothing is to be cut off."""
        text = defused(text_of(completion))
        before, after = self._around(prompt, columns)
        if self.options.steps is not None:
            steps = split_steps(text, self.options.steps.separator)
            start, end, *ids_of_steps = self.ids([before, after, *steps])
            start = [*self._first_ids, *start]
            return joined_steps(start, ids_of_steps, self._step_token_ids, end, head=len(start))
        whole = [*self._first_ids, *self.ids([before + text + after])[0]]
        if self.options.truncate == "error" or self._max_length is None or len(whole) <= self._max_length:
            return Row(whole)
        start, middle, end = self.ids([before, text, after])
        start = [*self._first_ids, *start]
        return Row([*start, *middle, *end], head=len(start), tail=len(end))

    def _around(self, prompt: Content, columns: dict[str, Any]) -> tuple[str, str]:
        """The text before and after the completion."""
        assert self._question is not None, "load() comes first"
        mark = secrets.token_hex(16)
        text = self._question.render(
            prompt=defused(conversation(prompt)),
            completion=mark,
            columns=SimpleNamespace(**{name: shown(value) for name, value in columns.items()}),
        )
        if self.options.form == "chat":
            system = [] if self.options.system is None else [{"role": "system", "content": self.options.system}]
            text = self.chat([*system, {"role": "user", "content": text}], add_generation_prompt=True)
        before, *rest = text.split(mark)
        if len(rest) != 1:
            raise ScorerLoadError(
                f"scorer {self.name!r}: the question must show {{{{ completion }}}} once, and leave it as it is"
            )
        return before, rest[0]

    def _special_tokens_before(self) -> list[int]:
        (text,) = self.ids(["a"])
        whole = self.models.tokenizer("a")["input_ids"]
        starts = [first for first in range(len(whole)) if whole[first : first + len(text)] == text]
        return whole[: starts[0]] if starts else []

    def _token_id(self, token: str | int) -> int:
        tokenizer = self.models.tokenizer
        if isinstance(token, int):
            if not 0 <= token < len(tokenizer):
                raise ScorerLoadError(f"scorer {self.name!r}: the model has no token {token}, but {len(tokenizer)}")
            return token
        ids = self.ids([token])[0]
        if len(ids) == 1:
            return ids[0]
        parts = ", ".join(repr(tokenizer.decode([one])) for one in ids)
        raise ScorerLoadError(
            f"scorer {self.name!r}: {token!r} is {len(ids)} tokens of model {self.options.model!r} ({parts}); give a "
            "text that is one token, or a token's id"
        )


class NextTokenModels(Models):
    """Causal language models whose logits are worked out only at the positions that are read.

    The logits of all positions would take T * V numbers a row: with 150,000 tokens more than the model itself.
    """

    def __init__(self, options: TokenProbabilityOptions):
        self._wanted: dict[int, Any] = {}
        super().__init__(options, "CausalLM", lambda output, _: output.logits, options.max_length)

    def prepare(self, replica: int) -> None:
        """The output layer of this copy is given the hidden states of the wanted positions and no others."""
        layer = self.replicas[replica].get_output_embeddings()
        if layer is None:
            raise ScorerLoadError("the model names no output layer (get_output_embeddings), so no token can be read")

        def only_wanted(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (inputs[0].flatten(0, 1)[self._wanted[replica]], *inputs[1:])

        layer.register_forward_pre_hook(only_wanted)

    def compiled_part(self, model: Any) -> Any:
        """All but the output layer, whose positions are others in each batch."""
        return model.base_model

    def wanted(self, ids: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """The last token of each row."""
        return [(len(row) - 1,) for row in ids]

    def use_wanted(self, wanted_K: Any, replica: int) -> None:
        """The logits of the token that follows each of these positions are given, [P, V], and no others."""
        self._wanted[replica] = wanted_K
