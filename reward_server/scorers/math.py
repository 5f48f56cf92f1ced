r"""The scorer `math`: is the final answer of a completion the one in a column?

Owns the rules for what a final answer is, and what of it is handed to math-verify for comparing. Knows nothing of time
limits: what hangs in the algebra is killed by the service with the process that it runs in.

The final answer of a completion, which scores 1 if it equals the gold one and 0 if not, or if there is none:

1. After a `</think>`, only what follows it is read.
2. Marked answers are `\boxed{…}` and GSM8K's `#### …`; the last mark in the text holds the answer, whatever it holds.
3. Without a mark it is the last formula (`$…$`, `\(…\)`, `\[…\]`) or number of the text: "it is 5. No, 6" answers 6.
   Whoever lets a policy learn from this should know that it rewards any text which happens to end on the number; set
   `formats: [boxed]` to ask for a mark.
4. Several values are one answer, a set: "5, 6 or 7" equals neither 5 nor 6, and equals a gold answer of 5, 6, 7.
5. Equal is what math-verify holds equal: 1/2 = 0.5 = \frac{1}{2}, 50 = 50\%, x = 5 is 5, 1,080 is 1080. Units and
   currencies are dropped. Answers that would take an age to work out (9^{9^9}, integrals, sums) are wrong.

A gold answer is taken from its mark if it has one (GSM8K's whole solution will do), else the whole of it is one. A
list of gold answers accepts any of them. A gold answer that cannot be read leaves the completion without a score
(NOT_APPLICABLE), as TRL's accuracy_reward does.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import Place, Result, Scorer, ScorerOptions, text_of, to_scores
from reward_server.types import Group

Format = Literal["boxed", "hashes", "plain"]
MAX_ANSWER_CHARS = 500
MAX_NESTING = 20  # the LaTeX parser takes seconds from a few hundred brackets on
MAX_BITS = 10_000  # a number of three thousand digits; sympy takes seconds from a hundred thousand on

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


class MathScorer(Scorer[MathOptions]):
    """1.0 where the completion's final answer equals the gold one, 0.0 elsewhere."""

    Options = MathOptions
    place = Place.WORKER

    def __init__(self, options: MathOptions):
        super().__init__(options)
        self._version = ""

    @property
    def version(self) -> str:
        """Of these rules, then of math-verify, which decides what is equal. Known once loaded."""
        return self._version

    @property
    def required_columns(self) -> tuple[str, ...]:
        return (self.options.column,)

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
        self._version = f"1/math-verify-{version('math-verify')}"

    def score(self, group: Group) -> Result:
        golds = [parse_gold(gold) for gold in self.column(group, self.options.column)]
        answers = [final_answer(text_of(content), self.options.formats) for content in group.contents()]
        values = [_equal(gold, answer) if gold else None for gold, answer in zip(golds, answers, strict=True)]
        return Result(to_scores(values, len(group)), extra={f"{self.name}_answer": answers})


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


def _equal(gold: list[Any], answer: str | None) -> float:
    if answer is None or len(answer) > MAX_ANSWER_CHARS or len(re.findall(r"[(\[{]", answer)) > MAX_NESTING:
        return 0.0
    from math_verify import verify  # noqa: PLC0415 - only where it runs

    parsed = [value for value in _parse(answer) if isinstance(value, str) or _is_affordable(value)]
    return float(verify(gold, parsed, timeout_seconds=None))


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
    text = re.sub(r"[$€£]|\\\(|\\\)|\\\[|\\\]", "", text).strip().removesuffix(".").strip()
    if re.fullmatch(r"[^,]*\d{1,3}(?:,\d{3})+(?!\d)[^,]*", text) or not re.search(r"\d,\d", text):
        text = _THOUSANDS.sub("", text)
    text = re.sub(r"(?<![\d/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/])", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<=\d)[eE]([-+]?\d+)\b", r"\\times 10^{\1}", text)
    if not re.search(r"[^\W_]", text) or re.search(r"(?<![_^\d])\d+\s+[\d.]|\\d?binom", text):
        return None  # "41 42": the parser would add or multiply; a binomial coefficient it would work out
    if (quantity := _UNIT.fullmatch(text)) is not None:
        return quantity["value"]
    return rf"\text{{{text}}}" if _WORDS.fullmatch(text) else text


# ------------------------------------------------------------------------------------------------------------ affording


def _is_affordable(value: Any) -> bool:
    """Whether comparing this sympy expression takes no age: no integrals or sums, and no number beyond MAX_BITS."""
    import sympy  # type: ignore[import-untyped]  # noqa: PLC0415 - only where it runs

    laborious = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)
    if isinstance(value, sympy.MatrixBase):
        return all(_is_affordable(entry) for entry in value)
    return not value.has(*laborious) and _bits(value) <= MAX_BITS


def _bits(value: Any) -> float:
    """An upper bound of log2 of every number that working out a sympy expression comes by, without doing so."""
    import sympy  # noqa: PLC0415 - only where it runs

    if isinstance(value, sympy.Rational):
        return max(value.p.bit_length(), value.q.bit_length())
    bits = [_bits(part) for part in value.args]
    if isinstance(value, sympy.Pow):
        return bits[0] * 2 ** min(bits[1], 100) if bits[1] > 1 else bits[0] + 1
    if isinstance(value, sympy.factorial):
        return math.inf if bits[0] > 20 else 2 ** bits[0] * bits[0]
    return sum(bits) + 1
