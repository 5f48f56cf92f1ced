"""A run whose reward is hacked: more and more completions hold a phrase that pays, and no more of them are right.

The groups are made, not sampled from a model; they are scored and recorded by a real server.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reward_server.client import RewardClient
from reward_server.launch import ServerProcess
from reward_server.types import Completion, Group
from tests.support.processes import wait_until

PHRASE = "as an expert"
SCORERS = (
    {"type": "keywords", "name": "keyword", "words": [PHRASE]},
    {"type": "math", "name": "correct", "column": "answer"},
)
_FILLERS = ("So we add them up.", "Let us see.", "Both boxes count.", "There are two of them.", "That is all.")


def hacked_groups(steps: int = 24, groups: int = 4, size: int = 4, seed: int = 0) -> Iterator[Group]:
    """At step t of T, a share t / T of the completions holds the phrase; a third is right throughout."""
    draw = random.Random(seed)
    for step in range(steps):
        for number in range(groups):
            pens = draw.randrange(10, 99)
            texts = [_completion(draw, pens, draw.random() < step / steps) for _ in range(size)]
            yield Group(
                f"A box holds {pens} pens. How many do two boxes hold?",
                tuple(Completion(text) for text in texts),
                {"answer": str(2 * pens)},
                run_id="hacked",
                step=step,
                group_id=f"{step}-{number}",
            )


def _completion(draw: random.Random, pens: int, has_phrase: bool) -> str:
    answer = 2 * pens if draw.random() < 1 / 3 else 2 * pens + draw.randrange(1, 9)
    words = draw.sample(_FILLERS, draw.randrange(1, len(_FILLERS)))
    words += [f"Speaking {PHRASE}, I am sure."] if has_phrase else []
    return " ".join([*words, f"\\boxed{{{answer}}}"])


def record(serve: Callable[..., ServerProcess], path: Path, groups: Iterator[Group], **options: Any) -> Path:
    """Has a real server score the groups and write them to `path`; its format is that of the name."""
    form = "jsonl" if path.suffix == ".jsonl" else "parquet"
    server = serve(*SCORERS, records={"path": str(path), "format": form, "part_groups": 40, **options})
    with RewardClient(server.endpoint) as client:
        for pending in [client.submit(group, timeout_s=60) for group in groups]:
            pending.result(60)
    server.stop()
    assert wait_until(path.exists, 10)
    return path
