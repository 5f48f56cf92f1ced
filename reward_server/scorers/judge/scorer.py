"""The scorer itself: the questions of a group, the calls, and the scores that the answers come to.

Owns the three modes and the order of calls. Prompts, verdicts, rankings and the budget are in the modules beside it,
HTTP is in `engine`. A malformed verdict, a failed or late call and a spent budget are FAILED or TIMEOUT, and
never a number: pointwise for that completion, pairwise for each completion whose comparisons are not complete
(`ranking.win_rates`), listwise for the whole group.

Legend: G completions of a group.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from reward_server.errors import InvalidGroupError
from reward_server.scorers.base import Result, failed, text_of
from reward_server.scorers.engine import EngineScorer
from reward_server.scorers.engine_errors import (
    BusyError,
    EngineError,
    MisconfiguredError,
    RefusedError,
    UnreachableError,
)
from reward_server.scorers.judge.budget import Budget, SpentError
from reward_server.scorers.judge.options import JudgeOptions
from reward_server.scorers.judge.prompts import Template, fenced, new_code
from reward_server.scorers.judge.ranking import Pair, pairs, rank_scores, win_rates
from reward_server.scorers.judge.response_format import Form, ResponseFormat
from reward_server.scorers.judge.verdicts import Verdict, VerdictError, text_of_answer, tokens_of_answer
from reward_server.scorers.templates import conversation, shown
from reward_server.types import Group, Score, Status

_PATH = "/chat/completions"
_WARMING_SHARE = 0.25
_CHARS_PER_TOKEN = 4
_OUTCOMES = {"first": 1.0, "second": 0.0, "tie": 0.5}
_NOT_BILLED = (BusyError, MisconfiguredError, RefusedError, UnreachableError)

Question = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict, its reasoning and the tokens of the call."""

    value: Any
    reasoning: str
    tokens: int


class JudgeScorer(EngineScorer[JudgeOptions]):
    """Scores by the verdicts of a chat model."""

    Options = JudgeOptions
    deterministic = False

    def __init__(self, options: JudgeOptions):
        super().__init__(options)
        self.group_aware = options.mode != "pointwise"
        self.budget = Budget(options.name, options.budget_requests, options.budget_tokens)
        self._format = ResponseFormat(options.name, options.structured_output)
        self._template: Template | None = None
        self._calls = asyncio.Semaphore(options.concurrent_calls)

    @property
    def version(self) -> str:
        """The version of this package's rules and the digest of the template. Known once loaded."""
        return f"1/{self._loaded.digest}"

    @property
    def notes(self) -> tuple[str, ...]:
        return self._format.notes

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Known once loaded: the template names them."""
        rubric = () if self.options.rubric_column is None else (self.options.rubric_column,)
        return (*rubric, *self._loaded.columns)

    @property
    def concurrency(self) -> int:
        return self.options.concurrent_groups

    def load(self) -> None:
        self._template = Template.load(self.options.template, self.options.base_dir, self.options.mode)
        super().load()

    async def score(self, group: Group) -> Result:
        if self.options.mode == "pointwise":
            return await self._grade(group)
        if len(group) < 2:
            message = f"mode {self.options.mode} has nothing to compare a single completion with"
            return Result((Score(Status.NOT_APPLICABLE, message=message),))
        return await (self._compare(group) if self.options.mode == "pairwise" else self._rank(group))

    # ------------------------------------------------------------------------------------------------------- the modes

    async def _grade(self, group: Group) -> Result:
        lowest, highest = self.options.scale
        verdict = Verdict("score", tuple(range(lowest, highest + 1)), self.options.reasoning)
        asking = _Prompts(self, group, verdict, lowest=lowest, highest=highest)
        rows = range(len(group))
        questions = [asking.question(row, completion=row) for row in rows for _ in range(self.options.samples)]
        answers = await self._ask_all(questions, verdict)
        per_row = [answers[row * self.options.samples :][: self.options.samples] for row in rows]
        scores = [_mean(row, lambda value: (value - lowest) / (highest - lowest)) for row in per_row]
        reasons = [row[0].reasoning if isinstance(row[0], Answer) else None for row in per_row]
        return self._result(scores, answers, {f"{self.name}_reasoning": reasons} if self.options.reasoning else {})

    async def _compare(self, group: Group) -> Result:
        verdict = Verdict("better", tuple(_OUTCOMES), self.options.reasoning)
        asking = _Prompts(self, group, verdict)
        texts = asking.texts
        met = pairs(len(group), self.options.rounds)
        different = [pair for pair in met if texts[pair[0]] != texts[pair[1]]]
        orders = [order for pair in different for order in (pair, pair[::-1]) for _ in range(self.options.samples)]
        answers = await self._ask_all([asking.question(0, first=a, second=b) for a, b in orders], verdict)
        scores: dict[Pair, Score] = dict.fromkeys(met, Score(Status.OK, 0.5))  # equal texts are a tie
        count = 2 * self.options.samples
        for index, pair in enumerate(different):
            as_first = [_turned(answer, order == pair) for answer, order in _part(answers, orders, index, count)]
            scores[pair] = _mean(as_first, lambda value: value)
        return self._result(_of_comparisons(len(group), scores), answers)

    async def _rank(self, group: Group) -> Result:
        count = len(group)
        verdict = Verdict("ranking", tuple(range(1, count + 1)), self.options.reasoning, count)
        asking = _Prompts(self, group, verdict)
        orders = [random.sample(range(count), count) for _ in range(self.options.samples)]
        answers = await self._ask_all([asking.question(0, completions=order) for order in orders], verdict)
        if (broken := _first_failure(answers)) is not None:
            return self._result(failed(count, broken.status, broken.message), answers)
        rankings = [
            [order[number - 1] for number in answer.value]
            for order, answer in zip(orders, answers, strict=True)
            if isinstance(answer, Answer)
        ]
        return self._result([Score(Status.OK, value) for value in rank_scores(rankings)], answers)

    def _result(
        self, scores: Sequence[Score], answers: Sequence[Answer | Score], extra: dict[str, Any] | None = None
    ) -> Result:
        tokens = sum(answer.tokens for answer in answers if isinstance(answer, Answer))
        return Result(tuple(scores), {f"{self.name}/tokens": float(tokens)}, extra or {})

    # ------------------------------------------------------------------------------------------------------- the calls

    async def _ask_all(self, questions: Sequence[Question], verdict: Verdict) -> list[Answer | Score]:
        """The answers in the order of the questions. With warm_prefix the first call ends before the others begin."""
        deadline = self.deadline()
        async with asyncio.TaskGroup() as tasks:
            asked = []
            for index, question in enumerate(questions):
                asked.append(tasks.create_task(self._ask(question, verdict, deadline)))
                if index == 0 and len(questions) > 1 and self.options.warm_prefix:
                    await asyncio.wait(asked, timeout=_WARMING_SHARE * self.options.timeout_s)
        return [task.result() for task in asked]

    async def _ask(self, question: Question, verdict: Verdict, deadline: float) -> Answer | Score:
        try:
            async with asyncio.timeout_at(deadline):
                await self._calls.acquire()
        except TimeoutError:
            return Score(Status.TIMEOUT, message="no call was free before the deadline; see concurrent_calls")
        try:
            return await self._call(question, verdict, deadline)
        except EngineError as error:
            return Score(error.status, message=str(error))
        except (VerdictError, SpentError) as error:
            return Score(Status.FAILED, message=str(error))
        finally:
            self._calls.release()

    async def _call(self, question: Question, verdict: Verdict, deadline: float) -> Answer:
        body = self._body(question)
        estimate = sum(len(part["content"]) for part in question) // _CHARS_PER_TOKEN + self.options.max_tokens

        async def post(form: Form) -> tuple[Any, int]:
            return await self._post({**body, **_response_format(form, verdict)}, estimate, deadline)

        answer, tokens = await self._format.ask(post, deadline)
        return Answer(*verdict.read(text_of_answer(answer)), tokens)

    async def _post(self, body: dict[str, Any], estimate: int, deadline: float) -> tuple[Any, int]:
        """The endpoint's answer, and the tokens that it took."""
        self.budget.take(estimate)
        try:
            answer = await self.engine.post(_PATH, body, deadline)
        except _NOT_BILLED:
            self.budget.settle(estimate, 0)
            raise
        tokens = tokens_of_answer(answer)
        tokens = estimate if tokens is None else tokens
        self.budget.settle(estimate, tokens)
        return answer, tokens

    def _body(self, question: Question) -> dict[str, Any]:
        options = self.options
        body: dict[str, Any] = {"model": options.model, "messages": question, **options.extra_body}
        if "max_completion_tokens" not in body:
            body["max_tokens"] = options.max_tokens
        if options.temperature is not None:
            body["temperature"] = options.temperature
        return body

    @property
    def _loaded(self) -> Template:
        assert self._template is not None, "load() comes first"
        return self._template


def _response_format(form: Form, verdict: Verdict) -> dict[str, Any]:
    if form == "none":
        return {}
    if form == "json_object":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "verdict", "strict": True, "schema": verdict.schema}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


class _Prompts:
    """The questions of one group. Their common part has one code, the fences of each question have another."""

    def __init__(self, scorer: JudgeScorer, group: Group, verdict: Verdict, **shared: Any):
        self._scorer = scorer
        self._template = scorer._loaded
        self._shared = {"form": verdict.form, **shared}
        self._code = new_code()
        self._prompts = [conversation(prompt) for prompt in group.prompts()]
        self._columns = {name: scorer.column(group, name) for name in scorer.required_columns}
        self.texts = [text_of(content) for content in group.contents()]
        if scorer.group_aware:
            self._refuse_different()

    def question(self, row: int, **judged: int | list[int]) -> Question:
        """A question with the prompt and columns of a row; `judged` says which completions fill which gaps."""
        code = new_code()
        return self._template.messages(
            **self._shared,
            rubric=self._rubric(row),
            prompt=fenced("prompt", self._prompts[row], self._code),
            # No dict, in which Jinja would find `items` and `keys` before a column of that name.
            columns=SimpleNamespace(**{name: shown(values[row]) for name, values in self._columns.items()}),
            **{name: self._fence(name, which, code) for name, which in judged.items()},
        )

    def _rubric(self, row: int) -> str:
        options = self._scorer.options
        rubric = options.rubric if options.rubric_column is None else self._columns[options.rubric_column][row]
        if isinstance(rubric, str) and rubric.strip():
            return rubric.strip()
        raise InvalidGroupError(
            f"scorer {options.name!r}: the column {options.rubric_column!r} holds {rubric!r:.80} where a rubric, as "
            "text, was due"
        )

    def _fence(self, name: str, which: int | list[int], code: str) -> str | list[str]:
        if isinstance(which, int):
            kind = "answer" if name == "completion" else f"{name} answer"
            return fenced(kind, self.texts[which], code)
        return [fenced(f"answer {place}", self.texts[index], code) for place, index in enumerate(which, start=1)]

    def _refuse_different(self) -> None:
        shared = {"prompt": self._prompts, **{f"column {name}": values for name, values in self._columns.items()}}
        for what, values in shared.items():
            if any(value != values[0] for value in values):
                raise InvalidGroupError(
                    f"scorer {self._scorer.name!r} compares completions of one prompt, and the {what} differs between "
                    "them; use mode: pointwise"
                )


def _mean(answers: Sequence[Answer | Score], value_of: Callable[[Any], float]) -> Score:
    """The mean of the verdicts, or the first failure among them."""
    if (broken := _first_failure(answers)) is not None:
        return broken
    values = [value_of(answer.value) for answer in answers if isinstance(answer, Answer)]
    return Score(Status.OK, float(sum(values) / len(values)))


def _first_failure(answers: Sequence[Answer | Score]) -> Score | None:
    """The first failure among the answers, and which call it was."""
    for index, answer in enumerate(answers):
        if isinstance(answer, Score):
            which = f"call {index + 1} of {len(answers)}: " if len(answers) > 1 else ""
            return Score(answer.status, message=f"{which}{answer.message}")
    return None


def _part(
    answers: Sequence[Answer | Score], orders: Sequence[Pair], index: int, count: int
) -> list[tuple[Answer | Score, Pair]]:
    part = slice(index * count, (index + 1) * count)
    return list(zip(answers[part], orders[part], strict=True))


def _turned(answer: Answer | Score, is_in_order: bool) -> Answer | Score:
    """The outcome for the first of the pair, whichever of the two was shown first."""
    if isinstance(answer, Score):
        return answer
    outcome = _OUTCOMES[answer.value]
    return Answer(outcome if is_in_order else 1 - outcome, answer.reasoning, answer.tokens)


def _of_comparisons(count: int, outcomes: dict[Pair, Score]) -> list[Score]:
    rates = win_rates(count, {pair: score.value for pair, score in outcomes.items()})
    return [
        Score(Status.OK, rate) if rate is not None else _why_none(index, outcomes) for index, rate in enumerate(rates)
    ]


def _why_none(index: int, outcomes: dict[Pair, Score]) -> Score:
    """Why a completion has no win rate: a comparison of its own failed, or all of its siblings were removed."""
    for pair, score in outcomes.items():
        if index in pair and score.value is None:
            sibling = pair[1] if pair[0] == index else pair[0]
            return Score(score.status, message=f"compared with completion {sibling}: {score.message}")
    return Score(Status.FAILED, message="every sibling that it was compared with has failed")
