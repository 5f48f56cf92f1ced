"""A file of reward functions as a user writes it, and scorers of its functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import Scorer
from reward_server.scorers.registry import build, parse_options

USER_FILE = """
import asyncio
import functools

import sibling

STEP = []

def length(completions, **kwargs):
    return [float(len(c)) for c in completions]

def everything(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **kwargs):
    log_extra("shout", [c.upper() for c in completions])
    for c in completions:
        log_metric("length", len(c))
    STEP.append((prompts, completion_ids, trainer_state.global_step, kwargs))
    return [1, None, True]

def narrow(completions, target):
    return [float(c == t) for c, t in zip(completions, target)]

def with_sibling(completions, **kwargs):
    return [sibling.ONE for _ in completions]

async def judge(completions, **kwargs):
    await asyncio.sleep(0)
    return [2.0 for _ in completions]

class Judge:
    async def __call__(self, completions, **kwargs):
        await asyncio.sleep(0)
        return [3.0 for _ in completions]

judge_object = Judge()

def threshold(completions, limit=3, **kwargs):
    return [float(len(c) > limit) for c in completions]

def make_threshold(limit):
    return functools.partial(threshold, limit=limit)

def needs_environments(completions, environments):
    return [0.0 for _ in completions]

def edits(completions, **kwargs):
    for messages in completions:
        messages[0]["content"] = "edited"
    return [0.0 for _ in completions]

def optional_answer(completions, **kwargs):
    return kwargs["answer"]

def reads_ids(completion_ids, **kwargs):
    return [len(ids) for ids in completion_ids]

def raises(completions, **kwargs):
    raise KeyError("lookup")

def rank(group):
    order = sorted(len(c) for c in group.contents())
    return [order.index(len(c)) for c in group.contents()]

async def async_rank(group, offset=0):
    return [offset + i for i in range(len(group))]

number = 3
"""


def write_user_files(folder: Path) -> Path:
    """Writes `rewards.py` and the file that it imports, and returns the folder."""
    (folder / "sibling.py").write_text("ONE = 1.0")
    (folder / "rewards.py").write_text(USER_FILE)
    return folder


def make(folder: Path, attribute: str, type: str = "function", **options: Any) -> Scorer:
    mapping = {"type": type, "name": "f", "function": f"rewards.py:{attribute}", **options}
    return build(parse_options(mapping, base_dir=folder))


def loaded(*args: Any, **options: Any) -> Scorer:
    scorer = make(*args, **options)
    scorer.load()
    return scorer


def load_error(scorer: Scorer) -> str:
    with pytest.raises(ScorerLoadError) as raised:
        scorer.load()
    return str(raised.value)
