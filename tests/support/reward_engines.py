"""Engines with a reward model that tests ask, and the scorer `endpoint` for them.

Answers have the shapes of vLLM (vllm/entrypoints/pooling) and TEI (router/src/http), as of late 2026.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from reward_server.scorers.base import Result, Scorer
from reward_server.scorers.registry import build, parse_options
from reward_server.types import Group, Score, Status
from tests.support.engines import Asked, FakeEngine

KEY = "sk-very-secret-0123456789"


def make(engine: FakeEngine | str, api: str = "vllm_classify", base_dir: Path | None = None, **options: Any) -> Scorer:
    url = engine if isinstance(engine, str) else engine.url
    mapping = {"type": "endpoint", "name": "rm", "url": url, "api": api, "timeout_s": 10, **options}
    return build(parse_options(mapping, base_dir=base_dir))


@contextlib.asynccontextmanager
async def loaded(scorer: Scorer) -> AsyncIterator[Scorer]:
    scorer.load()
    try:
        yield scorer
    finally:
        closing = scorer.close()
        assert closing is not None
        await closing


async def scores(scorer: Scorer, group: Group) -> tuple[Score, ...]:
    async with loaded(scorer):
        answer = scorer.score(group)
        assert not isinstance(answer, Result)
        return (await answer).scores


def values(scored: tuple[Score, ...]) -> list[float | None]:
    assert all((score.status is Status.OK) == (score.value is not None) for score in scored)
    return [score.value for score in scored]


def classify(asked: Asked) -> Any:
    """vLLM's /classify: the logit is the text's length; rows in another order, as nothing forbids."""
    texts = asked.body.get("input") or ["".join(m["content"] for m in asked.body["messages"])]
    data = [{"index": i, "label": "LABEL_0", "probs": [len(t) + 0.5], "num_classes": 1} for i, t in enumerate(texts)]
    return {"id": "classify-1", "object": "list", "created": 1, "model": "rm", "data": data[::-1], "usage": {}}


def score_pairs(asked: Asked) -> Any:
    """vLLM's /score."""
    ones, twos = asked.body["text_1"], asked.body["text_2"]
    ones = [ones] * len(twos) if isinstance(ones, str) else ones
    pairs = enumerate(zip(ones, twos, strict=True))
    data = [{"index": i, "object": "score", "score": len(a) + len(b) / 10} for i, (a, b) in pairs]
    return {"id": "score-1", "object": "list", "created": 1, "model": "rm", "data": data, "usage": {}}


def predict(asked: Asked) -> Any:
    """TEI's /predict of two classes, the likelier first."""
    answers = []
    for parts in asked.body["inputs"]:
        good = float(len("|".join(parts)))
        both = [{"label": "good", "score": good}, {"label": "bad", "score": 3.0}]
        answers.append(sorted(both, key=lambda one: -float(one["score"])))
    return answers


def vllm_error(code: int, message: str, **headers: str) -> Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": code}
    return JSONResponse({"error": error}, code, headers={name.replace("_", "-"): v for name, v in headers.items()})


def in_turn(*answers: Any, then: Callable[[Asked], Any] = classify) -> Callable[[Asked], Any]:
    """Each answer once, then a function's."""
    left = list(answers)
    return lambda asked: left.pop(0) if left else then(asked)
