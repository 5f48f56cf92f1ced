"""Phrases that became more common among the best-scored completions: log-odds with an informative Dirichlet prior.

Monroe, Colaresi & Quinn (2008), "Fightin' Words", equations 16, 19 and 22. Pure: texts in, a table out. A phrase counts
once for a completion that has it, so one completion that repeats a word does not make it common.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

_LONGEST = 4
_MOST_TOKENS = 400
# How many completions the prior weighs as much as.
_PRIOR_COMPLETIONS = 20.0
_LEAST_COUNT = 3
_TOKEN = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Phrase:
    """`z` is its log-odds ratio in standard deviations; early and late are the shares of completions that hold it."""

    text: str
    z: float
    early: float
    late: float


_Found = tuple[tuple[str, ...], Phrase]


def growing_phrases(early: Sequence[str], late: Sequence[str], most: int = 30) -> list[Phrase]:
    """The phrases of one to four words that grew most; of phrases within one another that grew alike, the longest."""
    if not early or not late:
        return []
    before, after = _counts(early), _counts(late)
    found = [
        _phrase(words, before[words], count, len(early), len(late))
        for words, count in after.items()
        if count >= _LEAST_COUNT and count / len(late) > before[words] / len(early)
    ]
    found.sort(key=lambda one: (-one[1].z, -len(one[0]), one[0]))
    return _longest(found, most)


def _phrase(words: tuple[str, ...], y_early: int, y_late: int, n_early: int, n_late: int) -> _Found:
    prior = _PRIOR_COMPLETIONS * (y_early + y_late) / (n_early + n_late)
    rest = _PRIOR_COMPLETIONS - prior
    delta = _log_odds(y_late, n_late, prior, rest) - _log_odds(y_early, n_early, prior, rest)
    variance = 1 / (y_late + prior) + 1 / (y_early + prior)
    return words, Phrase(" ".join(words), delta / math.sqrt(variance), y_early / n_early, y_late / n_late)


def _log_odds(count: int, of: int, prior: float, rest: float) -> float:
    return math.log((count + prior) / (of - count + rest)) if of - count + rest > 0 else math.inf


def _counts(texts: Sequence[str]) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        tokens = _TOKEN.findall(text.lower())[:_MOST_TOKENS]
        counts.update(
            {
                tuple(tokens[start : start + length])
                for length in range(1, _LONGEST + 1)
                for start in range(len(tokens) - length + 1)
            }
        )
    return counts


def _longest(found: list[_Found], most: int) -> list[Phrase]:
    """Leaves out a phrase that is a part of another one that is as common; joins those that overlap."""
    candidates = [(words, said) for words, said in found[: 20 * most] if any(word[0].isalnum() for word in words)]
    kept: list[_Found] = []
    for words, said in candidates:
        if any(_is_part(words, other) and far.late >= 0.9 * said.late for other, far in candidates):
            continue
        for place, (other, far) in enumerate(kept):
            if (far.early, far.late) == (said.early, said.late) and (joined := _joined(words, other)):
                kept[place] = (joined, far)
                break
        else:
            kept.append((words, said))
    return [replace(said, text=" ".join(words)) for words, said in kept[:most]]


def _joined(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """Two phrases that overlap by at least two words as one; empty if they do not."""
    for one, two in ((first, second), (second, first)):
        if _is_part(one, two):
            return two
        for overlap in range(min(len(one), len(two)) - 1, 1, -1):
            if one[-overlap:] == two[:overlap]:
                return one + two[overlap:]
    return ()


def _is_part(words: tuple[str, ...], other: tuple[str, ...]) -> bool:
    length = len(words)
    return length < len(other) and any(other[at : at + length] == words for at in range(len(other) - length + 1))
