"""Reward functions that tests serve, and use locally to compare: TRL's signature, no state."""

from __future__ import annotations

import json
import os
import time
import zlib
from typing import Any


def text_of(completion: Any) -> str:
    return completion if isinstance(completion, str) else "".join(m["content"] or "" for m in completion)


def vowels(completions: list[Any], **_: Any) -> list[float]:
    """The share of vowels and digits, different for nearly every completion."""
    return [sum(c in "aeiou0123456789" for c in text_of(x)) / (len(text_of(x)) + 1) for x in completions]


def even_length(completions: list[Any], **_: Any) -> list[float | None]:
    """1 for an even number of characters, 0 for an odd one, not applicable to the empty."""
    return [None if not text_of(x) else float(len(text_of(x)) % 2 == 0) for x in completions]


def target_share(completions: list[Any], target: list[str], **_: Any) -> list[float]:
    """The share of characters that occur in the column `target`."""
    return [sum(c in t for c in text_of(x)) / (len(text_of(x)) + 1) for x, t in zip(completions, target, strict=True)]


def logged(completions: list[Any], log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
    """Logs through TRL's doors, and scores the length."""
    log_extra("length", [len(text_of(x)) for x in completions])
    log_metric("lengths/mean", sum(len(text_of(x)) for x in completions) / len(completions))
    return [float(len(text_of(x))) for x in completions]


def rank_in_group(group: Any) -> list[float]:
    """A group function: each completion's place by length among its siblings; writes down each group it sees."""
    path = os.environ.get("SEEN_GROUPS")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps({"id": group.group_id, "prompt": group.prompt, "contents": group.contents()}) + "\n")
    lengths = [len(text_of(content)) for content in group.contents()]
    return [float(sorted(lengths).index(length)) for length in lengths]


def raises(completions: list[Any], **_: Any) -> list[float]:
    raise KeyError("no such thing")


def not_a_number(completions: list[Any], **_: Any) -> list[float]:
    return [float("nan")] * len(completions)


def too_few(completions: list[Any], **_: Any) -> list[float]:
    return [1.0]


def slow(completions: list[Any], **_: Any) -> list[float]:
    time.sleep(float(os.environ.get("SLOW_S", "0.5")))
    return vowels(completions)


def never(completions: list[Any], **_: Any) -> list[None]:
    return [None] * len(completions)


def fails_on_eleven(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Fails on one prompt of the dataset, so that one rank alone meets it."""
    if any("11" in text_of(prompt) for prompt in prompts):
        raise RuntimeError("eleven")
    return vowels(completions)


def flaky(completions: list[Any], **_: Any) -> list[float]:
    """Fails on about 30 % of all completions, the same ones each time; scores the others."""
    if any(zlib.crc32(text_of(x).encode()) % 10 < 3 for x in completions):
        raise RuntimeError("this completion is unlucky")
    return vowels(completions)


def flaky_and_solved(completions: list[Any], **_: Any) -> list[float]:
    """Fails as `flaky` does, and gives 1 to all others."""
    return [1.0] * len(flaky(completions))


def signal_in_half(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Groups of prompts that end in an even digit are all alike: half of them carry no signal."""
    scores = vowels(completions)
    return [score if int(text_of(p)[-1]) % 2 else 1.0 for p, score in zip(prompts, scores, strict=True)]


def fails_in_steps_1_and_2(completions: list[Any], trainer_state: Any, **_: Any) -> list[float]:
    """Fails on everything in the second and third step of a run, as a service does that is away for a while."""
    if trainer_state.global_step in (1, 2):
        raise RuntimeError("away")
    return vowels(completions)


def unlucky(completions: list[Any], **_: Any) -> list[float]:
    """Fails on the completion "unlucky", and gives 1 to all others."""
    if "unlucky" in completions:
        raise RuntimeError("bad luck")
    return [1.0] * len(completions)


def year(completions: list[Any], **columns: Any) -> list[float | None]:
    """The year of the column `when`, an ISO date; not applicable without that column."""
    return [float(when[:4]) for when in columns["when"]] if "when" in columns else [None] * len(completions)
