r"""The scorer `math`: is the final answer of a completion the one in a column?

Owns the rules for what a final answer is, and which answers are handed to math-verify for comparing. `math_limits` owns
what comparing may cost, and `math_sets` a few comparisons that math-verify leaves undecided.

The final answer of a completion scores 1 if it equals the gold answer, and 0 if it does not or if there is none:

1. After a `</think>`, only the text that follows it is read.
2. Marked answers are `\boxed{…}` and GSM8K's `#### …`. The last mark in the text holds the answer, whatever it holds; a
   box that is not closed holds none.
3. Without a mark the answer is the last formula (`$…$`, `\(…\)`, `\[…\]`) or number of the text: "it is 5. No, 6"
   answers 6. A policy that learns from this is rewarded for any text which happens to end on the number ("see page
   5"); set `formats: [boxed]` to ask for a mark.
4. Several values are one answer, a set: "5, 6 or 7" equals neither 5 nor 6, and equals a gold answer of 5, 6, 7. So a
   list of all numbers is wrong; of numbers that stand on a line each, the last is the answer. A range, a bound and what
   is vague ("5 or more", x ≤ 5, 5 ± 1) is no 5.
5. Equal is what math-verify holds equal: 1/2 = 0.5 = \frac{1}{2}, 50 and 0.5 = 50\%, 1,080 is 1080. Decimals are
   compared to six places. Of an equation the last right side counts: x = 5 is 5. Units and currencies are dropped. A
   formula with variables equals no number.
6. Beyond that, repeating decimals are fractions (0.\overline{3}, 0.\bar{3}, 0.\dot{3} and 0.(3) are 1/3); an interval
   equals the bound of a variable that says the same ((0,1) and 0 < x < 1, [2,\infty) and x \ge 2), and so does a gold
   point (0,1), which is written alike; and where i is the only symbol it is the imaginary unit (e^{i\pi} = -1).
7. LaTeX that does not parse (\frac{5}{}), or is longer or deeper than any right answer, is wrong. So is what would take
   an age to work out, which is told by its form, before any algebra: numbers beyond 10,000 bits (9^{9^9}, (10^9)!),
   formulas of more than 200 terms ((x+1)^{1000}), sums, integrals, "n choose k" beyond three digits, and the like.
8. What takes an age all the same is TIMEOUT after `answer_timeout_s` of processor time. It costs its own score only.

Undecided, and so 0 unless both are written alike: 0.333… with dots, sets in words or in set-builder notation
(\{x | x > 0\}), inequalities that must be solved (x^2 < 4), several variables (x < y), matrices of unequal form, and
whatever else math-verify does not read.

A gold answer is taken from its mark if it has one (GSM8K's whole solution will do), else the whole of it is one. A
list of gold answers accepts any of them. A gold answer that is null or cannot be read leaves the completion without a
score (NOT_APPLICABLE), as TRL's accuracy_reward does. Since a dataset of them would train on nothing, those that cannot
be read are counted in the metric <name>/unreadable_gold, the share of a group, and warned about once for each kind of
value.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import ExecutorKind, Result, ScorerOptions, text_of, to_score
from reward_server.scorers.columns import ColumnScorer
from reward_server.scorers.math_limits import OutOfTimeError, cpu_limit, is_affordable
from reward_server.scorers.math_sets import are_same_bounds, are_same_complex
from reward_server.types import Group, Score, Status

log = logging.getLogger("reward_server")

Format = Literal["boxed", "hashes", "plain"]
MAX_ANSWER_CHARS = 500
MAX_NESTING = 20  # the LaTeX parser takes seconds from a few hundred brackets on

_BOXED = r"\\f?boxed\s*\{"
_HASHES = r"####[ \t]*(?=[-+−$€£\\(\[{.\d])"  # not a Markdown heading of the fourth level
_NUMBER = (
    r"[-−+]?[$€£]?\s?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))"  # -$1,080.00, .5
    r"(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?(?:\s?\\?%)?"  # 1e6, 3/4, 50%
)
# A dollar sign opens a formula before a visible character and closes one behind a visible character and before no digit
# (Pandoc's rule), so that "$48 and then $24" are two amounts.
# The bound keeps the search linear in the text: nothing longer than MAX_ANSWER_CHARS can be right.
_FORMULA = r"\$\$.{1,500}?\$\$|\$(?=\S)[^$\n]{1,500}?(?<=\S)\$(?!\d)|\\\(.{1,500}?\\\)|\\\[.{1,500}?\\\]"
_ITEM = rf"(?:{_FORMULA}|(?<![\w.]){_NUMBER})"
_SEPARATOR = r"(?:\s*(?:,\s*(?:and|or)\b|,|;|\band\b|\bor\b)\s*|[ \t]+)"
_PLAIN = re.compile(rf"{_ITEM}(?:{_SEPARATOR}{_ITEM})*", re.DOTALL)
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\\[,;: !]|\u00a0|\u202f|\u2009|~|,)(?=\d{3}(?!\d))")
_UNIT = re.compile(
    r"(?P<value>[-+]?[\d.]+(?:/\d+)?)\s+(?!(?:pi|sqrt|sin|cos|tan|log|ln|exp|or|and)\b)[A-Za-z][a-z .]*[a-z]"
)
_VAGUE = re.compile(
    r"\b(?:(?:or|and) (?:more|less|fewer|so|above|below)\b|(?:at least|at most|up to|(?:more|less|fewer) than)\W*\d)"
)
# A decimal whose last digits repeat: 0.1\overline{6}, 0.(3).
_REPEATING = re.compile(
    r"(?<![\d.])(?P<whole>\d*)\.(?P<fixed>\d*)"
    r"(?:\\(?:overline|bar|dot)\s*(?:\{\s*(?P<braced>\d+)\s*\}|(?P<digit>\d))|\((?P<brackets>\d+)\))(?![\d(.])"
)
# The parser works these out at once, whatever their size: "n choose k" and divisors, which are small here, …
_SMALL = r"\s*(?!\d{4})[\da-zA-Z+-]{1,4}\s*"
_SMALL_WORK = re.compile(
    rf"\\[dt]?binom\s*\{{{_SMALL}\}}\s*\{{{_SMALL}\}}"
    rf"|\{{{_SMALL}\\choose\b{_SMALL}\}}|\\(?:gcd|lcm)\s*\(\s*\d{{1,9}}(?:\s*,\s*\d{{1,9}})*\s*\)"
)
# … and these, which may be large, with roots of other than small degree.
_LABORIOUS = re.compile(r"binom|choose|brack|gcd|lcm|\\sqrt\s*\[(?!\s*\w{1,3}\s*\])")
_INEQUALITY = re.compile(r"[<>≤≥]|\\(?:[lg]eq?|[lg]t|leqslant|geqslant|neq?)(?![a-z])")
_TOWER = re.compile(r"\^[\s{(]*[\d.]+[\s})]*\^|\^[\s{(]*-?\d{4}|!")
_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+)*")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


class MathOptions(ScorerOptions):
    """Options of `math`."""

    column: str = Field("answer", description="Column with the gold answer: text, number, or a list of accepted ones.")
    formats: tuple[Format, ...] = Field(
        ("boxed", "hashes", "plain"),
        min_length=1,
        description=r"What counts as a final answer: boxed (\boxed{…}), hashes (#### …), plain (the last number or "
        "formula, where there is no mark).",
    )
    answer_timeout_s: float = Field(
        5.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds of processor time that comparing one answer may take. Beyond them its score is TIMEOUT, "
        "and the other completions of the group are scored.",
    )


class MathScorer(ColumnScorer[MathOptions]):
    """1.0 where the completion's final answer equals the gold one, 0.0 elsewhere.

    Its version is that of these rules, then of math-verify, which decides what is equal.
    """

    Options = MathOptions
    place = ExecutorKind.WORKER

    def __init__(self, options: MathOptions):
        super().__init__(options)
        self._unreadable: set[str] = set()
        """The kinds of gold values that were warned about."""

    def load(self) -> None:
        try:
            from importlib.metadata import version  # noqa: PLC0415 - only where it runs

            import math_verify  # noqa: PLC0415, F401
        except ImportError as error:
            raise ScorerLoadError(
                f"scorer {self.name!r} of type math needs math-verify ({error}): pip install 'grpo-plugin[server]'"
            ) from error
        # It warns that nobody limits its time; the service does.
        for module in ("parser", "grader"):
            logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
        _equal(parse_gold("1"), "2")  # loads what is loaded late, so that no answer's time is spent on it
        self._version = f"3/math-verify-{version('math-verify')}"

    def score(self, group: Group) -> Result:
        golds = self.column(group, self.options.column)
        answers = [final_answer(text_of(content), self.options.formats) for content in group.contents()]
        scores = tuple(self._compare(gold, answer) for gold, answer in zip(golds, answers, strict=True))
        unreadable = sum(score.status is Status.NOT_APPLICABLE and bool(score.message) for score in scores)
        metrics = {f"{self.name}/unreadable_gold": unreadable / len(scores)}
        return Result(scores, metrics, {f"{self.name}_answer": answers})

    def _compare(self, gold: Any, answer: str | None) -> Score:
        try:
            with cpu_limit(self.options.answer_timeout_s):
                golds = parse_gold(gold)
                return to_score(_equal(golds, answer)) if golds else self._without_gold(gold)
        except OutOfTimeError:
            message = f"comparing the answer took more than answer_timeout_s = {self.options.answer_timeout_s:g} s"
            return Score(Status.TIMEOUT, message=message)

    def _without_gold(self, gold: Any) -> Score:
        if gold is None:
            return Score(Status.NOT_APPLICABLE)
        kind = type(gold).__name__
        if kind not in self._unreadable:
            self._unreadable.add(kind)
            log.warning(
                "scorer %r: the column %r holds a gold answer that cannot be read, of type %s: %.80r. Its completions "
                "get no score (NOT_APPLICABLE); the metric %s/unreadable_gold counts them, and this is said once for "
                "each type",
                self.name,
                self.options.column,
                kind,
                gold,
                self.name,
            )
        return Score(Status.NOT_APPLICABLE, message=f"the gold answer cannot be read: {gold!r:.80}")


# ----------------------------------------------------------------------------------------------------------- extracting


def final_answer(text: str, formats: Sequence[str] = ("boxed", "hashes", "plain")) -> str | None:
    """The final answer of a completion as it was written, None if there is none."""
    text = text.rpartition("</think>")[2]
    patterns = [pattern for name, pattern in (("boxed", _BOXED), ("hashes", _HASHES)) if name in formats]
    mark = _last(re.finditer("|".join(patterns), text)) if patterns else None
    if mark is not None:
        rest = text[mark.end() :]
        return _until_closed(rest) if mark[0].startswith("\\") else rest.partition("\n")[0].strip()
    if "plain" not in formats:
        return None
    found = _last(_PLAIN.finditer(text))
    return found[0].strip() if found is not None else None


def _last(matches: Iterator[re.Match[str]]) -> re.Match[str] | None:
    last = None
    for match in matches:
        last = match
    return last


def _until_closed(text: str) -> str | None:
    """What stands before the brace that closes one opened before `text`; None if none does (a cut-off completion)."""
    depth = 1
    for brace in re.finditer(r"(?<!\\)[{}]", text):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[: brace.start()].strip()
    return None


# -------------------------------------------------------------------------------------------------------------- parsing


def parse_gold(gold: Any) -> list[Any]:
    """Gold answers as math-verify holds them, any of which is right; an empty list if none can be read."""
    if isinstance(gold, list):
        return [parsed for one in gold for parsed in parse_gold(one)]
    if gold is None or isinstance(gold, (bool, dict)):
        return []
    text = str(gold)
    answer = final_answer(text, ("boxed", "hashes"))
    if answer is None:
        is_prose = len(_PROSE.findall(text)) > 2
        answer = final_answer(text, ("plain",)) if is_prose else text
    return _parse(answer or "")


def _equal(golds: list[Any], answer: str | None) -> float:
    if answer is None or len(answer) > MAX_ANSWER_CHARS or len(re.findall(r"[(\[{|]", answer)) > MAX_NESTING:
        return 0.0
    from math_verify import verify  # noqa: PLC0415 - only where it runs

    parsed = _parse(answer)
    if any(_is_decided_here(gold, value) for gold in golds for value in parsed):
        return 1.0
    comparable = [value for value in parsed if isinstance(value, str) or _may_equal(golds, value)]
    return float(verify(golds, comparable, timeout_seconds=None))


def _is_decided_here(gold: Any, value: Any) -> bool:
    """Whether they are equal in a way that math-verify does not see."""
    if isinstance(gold, str) or isinstance(value, str) or not (is_affordable(gold) and is_affordable(value)):
        return False
    return are_same_bounds(gold, value) or are_same_complex(gold, value)


def _may_equal(golds: list[Any], value: Any) -> bool:
    """False where no algebra is needed: a formula of variables is no number, and some take an age to work out."""
    if any(not isinstance(gold, str) and gold.free_symbols for gold in golds):
        return is_affordable(value)
    from sympy.core.relational import Relational  # type: ignore[import-untyped]  # noqa: PLC0415

    sides = [relation.rhs for relation in value.atoms(Relational)] or [value]
    # A lone symbol may be a number all the same: \text{5}.
    are_numbers = [getattr(side, "is_Symbol", False) or not side.free_symbols for side in sides]
    return any(are_numbers) and all(is_affordable(side) for side in sides)


def _parse(answer: str) -> list[Any]:
    """One written answer as math-verify holds it: an expression and its text, or nothing."""
    latex = _as_latex(answer)
    if latex is None:
        return []
    from math_verify import LatexExtractionConfig, parse  # noqa: PLC0415 - only where it runs

    config = LatexExtractionConfig(boxed_match_priority=0)
    return parse(rf"\boxed{{{latex}}}", extraction_config=[config], parsing_timeout=None)


def _as_latex(answer: str) -> str | None:
    """What people write around and inside a number, as LaTeX has it; None for what has no one reading."""
    text = answer.replace("−", "-").replace("\\$", "").strip(" \t\n*`")
    text = re.sub(r"[$€£]|\\\(|\\\)|\\\[|\\\]", "", text).strip().rstrip(".,; ")
    if re.fullmatch(r"[^,]*\d{1,3}(?:,\d{3})+(?!\d)[^,]*", text) or not re.search(r"\d,\d", text):
        text = _THOUSANDS.sub("", text)
    text = re.sub(r"(?<![\d/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/])", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<=\d)[eE]([-+]?\d+)\b", r"\\times 10^{\1}", text)
    text = _REPEATING.sub(_as_fraction, text)
    text = re.sub(r"\\([dt]?)binom\s*(\d)\s*(\d)", r"\\binom{\2}{\3}", text)
    if not re.search(r"[^\W_]", text) or re.search(r"(?<![_^\d])\d+\s+[\d.]", text):
        return None  # "41 42": the parser would add or multiply
    if (
        _VAGUE.search(text)
        or _LABORIOUS.search(_SMALL_WORK.sub("", text))
        or (_INEQUALITY.search(text) and _TOWER.search(text))
    ):
        return None
    if (quantity := _UNIT.fullmatch(text)) is not None:
        return quantity["value"]
    return rf"\text{{{text}}}" if _WORDS.fullmatch(text) else text


def _as_fraction(found: re.Match[str]) -> str:
    """0.1(6) is (16 - 1) / 90: as many nines as digits repeat, then as many zeros as do not."""
    repeated = found["braced"] or found["digit"] or found["brackets"]
    fixed = found["whole"] + found["fixed"]
    numerator = int(fixed + repeated) - int(fixed or "0")
    return rf"\frac{{{numerator}}}{{{'9' * len(repeated) + '0' * len(found['fixed'])}}}"
