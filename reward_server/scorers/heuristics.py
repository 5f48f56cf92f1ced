"""Scorers that read the text only: regex, match, keywords, repetition.

Owns four small rules, and the base that they share with the rules of length (`lengths`). Each scores 1.0 or 0.0
(repetition: -1 to 0), so that `weight` alone says what a rule is worth. A negative weight inverts a rule.

Legend: G completions of a group.
"""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator

from reward_server.scorers.base import ExecutorKind, Result, Scorer, ScorerOptions, text_of, to_scores
from reward_server.scorers.columns import ColumnScorer
from reward_server.types import Group

Unit = Literal["chars", "words", "tokens"]
Flag = Literal["ignorecase", "multiline", "dotall"]
OptionsT = TypeVar("OptionsT", bound=ScorerOptions)


class Heuristic(Scorer[OptionsT]):
    """A rule: G values of a group, computed on the event loop."""

    place = ExecutorKind.LOOP

    def score(self, group: Group) -> Result:
        return Result(to_scores(self.values(group), len(group)))

    @abstractmethod
    def values(self, group: Group) -> Sequence[float | None]:
        """G values."""

    def texts(self, group: Group) -> list[str]:
        """The text of each completion, G long."""
        return [text_of(content) for content in group.contents()]

    def units(self, group: Group, unit: Unit) -> Sequence[Sequence[Any]]:
        """Each completion as a sequence of characters, words (split at white space) or token ids, G long."""
        if unit == "tokens":
            return self.token_ids(group)
        texts = self.texts(group)
        return texts if unit == "chars" else [text.split() for text in texts]


# ---------------------------------------------------------------------------------------------------------------- regex


def _checked_pattern(pattern: str | None) -> str | None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


class RegexOptions(ScorerOptions):
    """Options of `regex`."""

    pattern: str = Field(description="A regular expression of Python's re.")
    whole: bool = Field(False, description="Whether the pattern must match the whole text; else a part of it suffices.")
    flags: tuple[Flag, ...] = Field((), description="Any of ignorecase, multiline, dotall.")

    _pattern_compiles = field_validator("pattern")(_checked_pattern)


class RegexScorer(Heuristic[RegexOptions]):
    """1.0 where the pattern matches, 0.0 elsewhere. It runs in a worker, since a pattern can backtrack for ever."""

    Options = RegexOptions
    place = ExecutorKind.WORKER

    def values(self, group: Group) -> list[float]:
        flags = re.RegexFlag(0)
        for name in self.options.flags:
            flags |= re.RegexFlag[name.upper()]
        pattern = re.compile(self.options.pattern, flags)
        matches = pattern.fullmatch if self.options.whole else pattern.search
        return [float(matches(text) is not None) for text in self.texts(group)]


# ---------------------------------------------------------------------------------------------------------------- match


class MatchOptions(ScorerOptions):
    """Options of `match`."""

    column: str = Field("answer", description="Column with the text to match; a list accepts any of its texts.")
    compare: Literal["exact", "normalised", "contains"] = Field(
        "normalised",
        description="exact: character by character. normalised: without case, punctuation and extra white space. "
        "contains: normalised, and other words may stand before and after it.",
    )
    extract: str | None = Field(
        None,
        description="A regular expression. Its last match (the first group of it, if it has groups) is compared in "
        "place of the whole completion; no match scores 0.",
    )

    _pattern_compiles = field_validator("extract")(_checked_pattern)


class MatchScorer(Heuristic[MatchOptions], ColumnScorer[MatchOptions]):
    """1.0 where the completion matches the column, 0.0 elsewhere; not applicable where the column is null."""

    Options = MatchOptions

    def __init__(self, options: MatchOptions):
        super().__init__(options)
        self.place = ExecutorKind.LOOP if options.extract is None else ExecutorKind.WORKER

    def values(self, group: Group) -> list[float | None]:
        golds = self.column(group, self.options.column)
        return [self._value(text, gold) for text, gold in zip(self.texts(group), golds, strict=True)]

    def _value(self, text: str, gold: Any) -> float | None:
        golds = [one for one in (gold if isinstance(gold, list) else [gold]) if one is not None]
        if not golds:
            return None
        extracted = self._extracted(text)
        return 0.0 if extracted is None else float(any(self._equal(extracted, str(one)) for one in golds))

    def _extracted(self, text: str) -> str | None:
        if self.options.extract is None:
            return text
        matches = list(re.finditer(self.options.extract, text, re.DOTALL))
        return (matches[-1][min(1, matches[-1].re.groups)] or "") if matches else None

    def _equal(self, text: str, gold: str) -> bool:
        if self.options.compare == "exact":
            return text == gold
        text, gold = _normalised(text), _normalised(gold)
        # A space at both ends, so that "art" is not found in "start".
        return text == gold or (self.options.compare == "contains" and bool(gold) and f" {gold} " in f" {text} ")


_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))


def _normalised(text: str) -> str:
    """Casefolded, without punctuation and extra white space. A text of punctuation only is not changed."""
    words = text.casefold().translate(_PUNCTUATION).split()
    return " ".join(words) if words else text.strip()


# ------------------------------------------------------------------------------------------------------------- keywords


class KeywordsOptions(ScorerOptions):
    """Options of `keywords`."""

    words: tuple[str, ...] = Field(min_length=1, description="Words or phrases to look for.")
    require: Literal["any", "all", "none"] = Field("any", description="How many of them the text must have to score 1.")
    ignore_case: bool = Field(True, description="Whether Word and word are the same.")

    @field_validator("words")
    @classmethod
    def _are_not_empty(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if not all(word.strip() for word in words):
            raise ValueError(f"{list(words)} has an empty word, which every text contains; remove it")
        return words


class KeywordsScorer(Heuristic[KeywordsOptions]):
    """1.0 where the text has any, all or none of the words, as whole words; 0.0 elsewhere."""

    Options = KeywordsOptions

    def __init__(self, options: KeywordsOptions):
        super().__init__(options)
        flags = re.IGNORECASE if options.ignore_case else re.RegexFlag(0)
        self._patterns = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", flags) for word in options.words]

    def values(self, group: Group) -> list[float]:
        return [float(self._holds(text)) for text in self.texts(group)]

    def _holds(self, text: str) -> bool:
        found = (pattern.search(text) is not None for pattern in self._patterns)
        if self.options.require == "all":
            return all(found)
        return any(found) == (self.options.require == "any")


# ----------------------------------------------------------------------------------------------------------- repetition


class RepetitionOptions(ScorerOptions):
    """Options of `repetition`."""

    ngram: int = Field(3, ge=1, description="Length of the n-grams, counted in `unit`.")
    unit: Unit = Field("words", description="chars, words (split at white space) or tokens (the trainer sends them).")


class RepetitionScorer(Heuristic[RepetitionOptions]):
    """Minus the share of n-grams that repeat another one: 0 if all differ, near -1 if one n-gram fills the text.

    unique / total - 1, as in "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373), appendix C.2.
    """

    Options = RepetitionOptions

    def values(self, group: Group) -> list[float]:
        return [self._value(parts) for parts in self.units(group, self.options.unit)]

    def _value(self, parts: Sequence[Any]) -> float:
        starts = range(len(parts) - self.options.ngram + 1)
        ngrams = [tuple(parts[start : start + self.options.ngram]) for start in starts]
        return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0
