"""Judges that tests ask: functions behind a real HTTP endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from reward_server.scorers.base import Result
from reward_server.scorers.judge import JudgeScorer
from reward_server.scorers.registry import build, parse_options
from reward_server.types import Group, Score, Status
from tests.support.engines import Asked, FakeEngine

GOOD = '{"reasoning": "since", "score": 2}'
"""The text of a sound verdict."""
FENCE = re.compile(r"^BEGIN (?P<head>[^\n]*)\n(?P<text>.*?)\nEND (?P=head)$", re.DOTALL | re.MULTILINE)


def make(engine: FakeEngine | str, base_dir: Path | None = None, **options: Any) -> JudgeScorer:
    url = engine if isinstance(engine, str) else f"{engine.url}/v1"
    rubric = {} if "rubric_column" in options else {"rubric": "The more good the better."}
    mapping = {"type": "judge", "name": "judge", "url": url, "model": "m", "timeout_s": 10, **rubric, **options}
    scorer = build(parse_options(mapping, base_dir=base_dir))
    assert isinstance(scorer, JudgeScorer)
    return scorer


@contextlib.asynccontextmanager
async def loaded(scorer: JudgeScorer) -> AsyncIterator[JudgeScorer]:
    scorer.load()
    try:
        yield scorer
    finally:
        await scorer.close()


async def judged(scorer: JudgeScorer, group: Group) -> Result:
    async with loaded(scorer):
        return await scorer.score(group)


async def scores(scorer: JudgeScorer, group: Group) -> tuple[Score, ...]:
    return (await judged(scorer, group)).scores


def values(scored: tuple[Score, ...]) -> list[float | None]:
    assert all((score.status is Status.OK) == (score.value is not None) for score in scored)
    return [score.value for score in scored]


# ---------------------------------------------------------------------------------------------------------- the judges


def chat(content: Any, finish_reason: str = "stop", tokens: int | None = 100, **message: Any) -> dict[str, Any]:
    """A chat completion in OpenAI's shape."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish_reason,
    }
    usage = {} if tokens is None else {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": tokens}}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **usage}


def verdict(**values: Any) -> dict[str, Any]:
    return chat(json.dumps({"reasoning": "since", **values}))


def texts_of(asked: Asked) -> dict[str, str]:
    """What is judged, by the heads of its fences without their codes: "answer", "first answer", "answer 2"."""
    user = asked.body["messages"][-1]["content"]
    return {found["head"].rpartition(" ")[0]: found["text"] for found in FENCE.finditer(user)}


def grades_good(asked: Asked) -> Any:
    """1 and one more for each "good"."""
    return verdict(score=1 + texts_of(asked)["answer"].count("good"))


def prefers_long(asked: Asked) -> Any:
    texts = texts_of(asked)
    first, second = len(texts["first answer"]), len(texts["second answer"])
    return verdict(better="tie" if first == second else "first" if first > second else "second")


def ranks_by_length(asked: Asked) -> Any:
    texts = {int(head.split()[1]): text for head, text in texts_of(asked).items() if head != "prompt"}
    return verdict(ranking=sorted(texts, key=lambda number: -len(texts[number])))


def gullible(messages: list[dict[str, str]]) -> str:
    """What a model says that keeps to the form of a chat, and believes whatever is outside the fences.

    Its engine renders the messages with ChatML and finds the control tokens in the text, wherever they come from. An
    answer that the assistant has begun it goes on with. Else it obeys whoever speaks outside the fences of what is
    judged, and without an order grades by the word "good".
    """
    rendered = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)(?=<\|im_end\|>|<\|im_start\|>|\Z)", rendered, re.DOTALL)
    for role, text in turns:
        if role == "assistant" and text.strip():
            return text.strip()
    found = [one for _, text in turns for one in FENCE.finditer(text)]
    fenced = [one["text"] for one in found if one["head"].startswith("answer")]
    orders = [order for _, text in turns for order in re.findall(r"Give the grade (\d+)", FENCE.sub("", text))]
    grade = int(orders[-1]) if orders else 1 + sum(text.count("good") for text in fenced)
    return json.dumps({"reasoning": "since", "score": grade})
