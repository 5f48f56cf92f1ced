"""The scorer `endpoint`: a reward model in an engine made for it, vLLM or Text Embeddings Inference.

Owns the requests of the engines' three APIs and the reading of their answers. HTTP, retries and the key: `engine`.

    vllm_classify   POST /classify   {"input": [text, …]}, or {"messages": […]}     data[].index, data[].probs
    vllm_score      POST /score      {"text_1": prompt, "text_2": [completion, …]}  data[].index, data[].score
    tei_predict     POST /predict    {"inputs": [[text], …] or [[prompt, completion], …]}   [[{"label", "score"}, …], …]

(As of late 2026, from vllm/entrypoints/pooling and TEI's router/src/http.) The completions of a group go in one
request, up to `batch_size`. A request that the engine refuses is halved until the completion that it is about stands
alone: that one is FAILED with the engine's words, the others get their scores. The text is what TRL gives a reward
model: prompt and completion joined, or messages in the model's chat template, which vLLM applies.

Legend: G completions of a group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import Field, JsonValue, model_validator

from reward_server.errors import InvalidGroupError
from reward_server.scorers.base import Result, failed, text_of, to_score
from reward_server.scorers.engine import EngineOptions, EngineScorer
from reward_server.scorers.engine_errors import AnswerError, EngineError, RefusedError
from reward_server.types import Content, Group, Score, Status


class EndpointOptions(EngineOptions):
    """Options of `endpoint`."""

    api: Literal["vllm_classify", "vllm_score", "tei_predict"] = Field(
        description="The API: vllm_classify or tei_predict for a reward model, vllm_score for a cross-encoder."
    )
    model: str | None = Field(None, description="Name under which vLLM serves the model; its only one if unset.")
    label: int | str | None = Field(
        None,
        description="Which class is the score, needed if the model has several: its index for vllm_classify, its name "
        "for tei_predict.",
    )
    activation: bool = Field(
        False,
        description="Apply the model's sigmoid or softmax; unset, the score is the logit, as in TRL. vLLM is told by "
        "use_activation, which old versions ignore: for these see --override-pooler-config.",
    )
    pair: bool = Field(
        False,
        description="tei_predict only: send prompt and completion as a pair, for a cross-encoder, not as one text.",
    )
    truncate: Literal["error", "left", "right"] = Field(
        "error",
        description="What happens to a text that is longer than the model allows. error: its score is FAILED. left: "
        "its start is cut off. right: its end is cut off.",
    )
    add_special_tokens: bool = Field(
        False, description="vllm_classify only: add the tokenizer's special tokens to text; TRL adds none."
    )
    chat_template_kwargs: dict[str, JsonValue] = Field(
        default_factory=dict, description="vllm_classify only: passed to the chat template, such as enable_thinking."
    )
    batch_size: int = Field(
        32, ge=1, description="Most completions in a request; TEI refuses more than its --max-client-batch-size (32)."
    )
    concurrency: int = Field(64, ge=1, description="Most groups whose requests are in flight at once.")
    deterministic: bool = Field(
        False,
        description="Whether the engine always serves the same weights at this URL, so that its scores may be cached.",
    )

    @model_validator(mode="after")
    def _fits_the_api(self) -> EndpointOptions:
        kinds = {"vllm_classify": (int, "the index of a class"), "tei_predict": (str, "the name of a class")}
        kind, what = kinds.get(self.api, (type(None), "left out: its models have one class"))
        if self.label is not None and not isinstance(self.label, kind):
            raise ValueError(f"label {self.label!r}: for {self.api} it must be {what}")
        if self.pair and self.api != "tei_predict":
            raise ValueError(f"pair is for tei_predict, not {self.api}; vllm_score always gives pairs")
        return self


class EndpointScorer(EngineScorer[EndpointOptions]):
    """The score that the engine's model gives each completion."""

    Options = EndpointOptions

    def __init__(self, options: EndpointOptions):
        super().__init__(options)
        self.deterministic = options.deterministic
        self._api: _Api = _APIS[options.api](options)

    @property
    def version(self) -> str:
        """The version of this file's reading of the API. `url` and `model` in the options say which model answers."""
        return f"1/{self.options.api}"

    @property
    def concurrency(self) -> int:
        return self.options.concurrency

    async def score(self, group: Group) -> Result:
        rows = [_Row(*both) for both in zip(group.prompts(), group.contents(), strict=True)]
        size = min([self.options.batch_size, *(self._api.most(row) for row in rows)])
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        return Result(tuple(await self._all(batches, self.deadline())))

    async def _all(self, batches: Sequence[Sequence[_Row]], deadline: float) -> list[Score]:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._ask(batch, deadline)) for batch in batches]
        return [score for task in asked for score in task.result()]

    async def _ask(self, rows: Sequence[_Row], deadline: float) -> Sequence[Score]:
        try:
            answer = await self.engine.post(self._api.path, self._api.body(rows), deadline)
            return self._api.scores(answer, len(rows))
        except EngineError as error:
            if not isinstance(error, RefusedError) or len(rows) == 1:
                return failed(len(rows), error.status, str(error))
        half = len(rows) // 2
        return await self._all([rows[:half], rows[half:]], deadline)


# ---------------------------------------------------------------------------------------------------------------- APIs


@dataclass(frozen=True, slots=True)
class _Row:
    prompt: Content
    completion: Content


class _Api(Protocol):
    path: str

    def most(self, row: _Row) -> int:
        """Most rows in a request that this one is part of. Raises InvalidGroupError for what the API cannot take."""

    def body(self, rows: Sequence[_Row]) -> Mapping[str, Any]: ...

    def scores(self, answer: Any, count: int) -> Sequence[Score]:
        """Raises AnswerError for what is no answer to `count` rows."""


class _VllmClassify:
    path = "/classify"

    def __init__(self, options: EndpointOptions):
        self._options = options

    def most(self, row: _Row) -> int:
        return 1 if _is_chat(row) else self._options.batch_size  # `messages` holds one conversation

    def body(self, rows: Sequence[_Row]) -> Mapping[str, Any]:
        options = self._options
        if not _is_chat(rows[0]):
            text = [f"{row.prompt}{row.completion}" for row in rows]
            return {**_vllm_common(options), "input": text, "add_special_tokens": options.add_special_tokens}
        messages = [dict(message) for message in (*rows[0].prompt, *rows[0].completion) if isinstance(message, Mapping)]
        kwargs = {"chat_template_kwargs": options.chat_template_kwargs} if options.chat_template_kwargs else {}
        return {**_vllm_common(options), "messages": messages, **kwargs}

    def scores(self, answer: Any, count: int) -> Sequence[Score]:
        return [self._pick(item.get("probs")) for item in _by_index(answer, count)]

    def _pick(self, values: Any) -> Score:
        if not isinstance(values, list) or not values:
            raise AnswerError(f"the answer has probs {values!r:.80} where a list of numbers was due")
        label = self._options.label
        if label is None and len(values) > 1:
            raise AnswerError(f"the model has {len(values)} classes: set label to the index of one of them")
        index = int(label or 0)
        if not 0 <= index < len(values):
            raise AnswerError(f"label {label!r}: the model has {len(values)} classes, 0 to {len(values) - 1}")
        return _number(values[index])


class _VllmScore:
    path = "/score"

    def __init__(self, options: EndpointOptions):
        self._options = options

    def most(self, row: _Row) -> int:
        return self._options.batch_size

    def body(self, rows: Sequence[_Row]) -> Mapping[str, Any]:
        prompts = [_plain(row.prompt) for row in rows]
        text_1: Any = prompts[0] if len(set(prompts)) == 1 else prompts
        return {**_vllm_common(self._options), "text_1": text_1, "text_2": [text_of(row.completion) for row in rows]}

    def scores(self, answer: Any, count: int) -> Sequence[Score]:
        return [_number(item.get("score")) for item in _by_index(answer, count)]


class _TeiPredict:
    path = "/predict"

    def __init__(self, options: EndpointOptions):
        self._options = options

    def most(self, row: _Row) -> int:
        if not self._options.pair and _is_chat(row):
            raise InvalidGroupError(
                f"scorer {self._options.name!r}: TEI knows no chat template, and prompt and completion are messages; "
                "send text, set pair: true for a cross-encoder, or serve the model with vLLM"
            )
        return self._options.batch_size

    def body(self, rows: Sequence[_Row]) -> Mapping[str, Any]:
        options = self._options
        if options.pair:
            inputs = [[_plain(row.prompt), text_of(row.completion)] for row in rows]
        else:
            inputs = [[f"{row.prompt}{row.completion}"] for row in rows]
        # Without `truncate` the engine's --auto-truncate decides, which is on by default.
        side = {} if options.truncate == "error" else {"truncation_direction": options.truncate.capitalize()}
        return {
            "inputs": inputs,
            "raw_scores": not options.activation,
            "truncate": options.truncate != "error",
            **side,
        }

    def scores(self, answer: Any, count: int) -> Sequence[Score]:
        if not isinstance(answer, list) or len(answer) != count or not all(isinstance(item, list) for item in answer):
            raise AnswerError(f"the answer is {answer!r:.80} where {count} lists of predictions were due")
        return [self._pick(predictions) for predictions in answer]

    def _pick(self, predictions: list[Any]) -> Score:
        """TEI gives every class, the likeliest first."""
        if not predictions or not all(isinstance(one, dict) for one in predictions):
            raise AnswerError(f"the answer has {predictions!r:.80} where predictions were due")
        by_label = {str(one.get("label")): one.get("score") for one in predictions}
        label = self._options.label
        if label is None and len(by_label) == 1:
            return _number(predictions[0].get("score"))
        if label not in by_label:
            raise AnswerError(f"label {label!r}: set it to one of the model's classes, {', '.join(by_label)}")
        return _number(by_label[str(label)])


_APIS: dict[str, type[_VllmClassify | _VllmScore | _TeiPredict]] = {
    "vllm_classify": _VllmClassify,
    "vllm_score": _VllmScore,
    "tei_predict": _TeiPredict,
}


def _vllm_common(options: EndpointOptions) -> dict[str, Any]:
    body: dict[str, Any] = {"use_activation": options.activation}
    if options.model is not None:
        body["model"] = options.model
    if options.truncate != "error":
        body |= {"truncate_prompt_tokens": -1, "truncation_side": options.truncate}  # -1: to the model's length
    return body


def _is_chat(row: _Row) -> bool:
    if isinstance(row.prompt, str) is not isinstance(row.completion, str):
        raise InvalidGroupError("prompt and completion must both be text or both be messages")
    return not isinstance(row.prompt, str)


def _plain(prompt: Content) -> str:
    """A prompt for a model of pairs, which knows no roles: what its messages say, a line each."""
    return prompt if isinstance(prompt, str) else "\n".join(text_of([{**m, "role": "assistant"}]) for m in prompt)


def _by_index(answer: Any, count: int) -> list[Mapping[str, Any]]:
    """vLLM's `data` in the order of the request, with each of its `count` rows exactly once."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(
        isinstance(item, dict) and type(item.get("index")) is int for item in data
    ):
        raise AnswerError(f"the answer is {answer!r:.80} where a list `data` with an index each was due")
    by_index = {item["index"]: item for item in data}
    if len(data) != count or set(by_index) != set(range(count)):
        raise AnswerError(f"the answer has the rows {[item['index'] for item in data]!s:.80} of the {count} asked for")
    return [by_index[index] for index in range(count)]


def _number(value: Any) -> Score:
    """The score of one number. Engines write NaN as null in JSON, so null is INVALID and not "not applicable"."""
    return Score(Status.INVALID, message="the engine answered null") if value is None else to_score(value)
