r"""How often the scorer `math` agrees with what is known: real GSM8K answers, written rightly and wrongly in many ways.

    python tests/benchmarks/math_agreement.py [--data path/to/gsm8k.jsonl] [--rows 500] [--show 5]

DATA is JSONL with `question` and `answer`, the number behind `####`, as openai/grade-school-math has it; a few made-up
rows stand in for it. Of each row's number every form below is made, right ones that must score 1 and wrong ones that
must score 0, and the share that does is printed, with the disagreements. "the solution without its mark" is the one
form whose truth is not known: it asks how often the last number of a human's reasoning is the answer, which is what a
policy is paid for without a mark.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_server.scorers.registry import build, parse_options
from reward_server.types import Completion, Group


@dataclass(frozen=True)
class Row:
    """One problem, its human solution, and the number as it is written there."""

    question: str
    solution: str
    written: str

    @property
    def n(self) -> int:
        return int(self.written.replace(",", ""))

    @property
    def reasoning(self) -> str:
        return self.solution.rpartition("####")[0].strip()

    @property
    def numbers(self) -> str:
        """All numbers around the right one: whoever lists them has it among them."""
        return ", ".join(str(self.n + step) for step in range(-3, 4))


Write = Callable[[Row], str]

RIGHT: dict[str, Write] = {
    "the solution as it is": lambda row: row.solution,
    "#### n": lambda row: f"#### {row.n}",
    "#### $n": lambda row: f"#### ${row.n}",
    "#### n dollars": lambda row: f"#### {row.n} dollars",
    r"\boxed{n}": lambda row: rf"{row.reasoning} So \boxed{{{row.n}}}.",
    r"\boxed{n,nnn}": lambda row: rf"\boxed{{{row.n:,}}}",
    r"\boxed{n{,}nnn}": lambda row: rf"\boxed{{{f'{row.n:,}'.replace(',', '{,}')}}}",
    r"\boxed{\$n}": lambda row: rf"\boxed{{\${row.n}}}",
    r"\boxed{n.00}": lambda row: rf"\boxed{{{row.n}.00}}",
    r"\boxed{n \text{ dollars}}": lambda row: rf"\boxed{{{row.n} \text{{ dollars}}}}",
    r"\boxed{\text{n}}": lambda row: rf"\boxed{{\text{{{row.n}}}}}",
    r"\boxed{\frac{2n}{2}}": lambda row: rf"\boxed{{\frac{{{2 * row.n}}}{{2}}}}",
    r"\boxed{x = n}": lambda row: rf"\boxed{{x = {row.n}}}",
    r"$\boxed{n}$": lambda row: rf"Hence $\boxed{{{row.n}}}$",
    r"\fbox{n}": lambda row: rf"\fbox{{{row.n}}}",
    "The answer is n.": lambda row: f"{row.reasoning}\nThe answer is {row.n}.",
    "the answer is: n": lambda row: f"the answer is: {row.n}",
    "**n**": lambda row: f"**Answer:** **{row.n}**",
    "$n$": lambda row: f"The answer is ${row.n}$.",
    r"\(n\)": lambda row: rf"The answer is \({row.n}\)",
    r"\[x = n\]": lambda row: rf"Therefore \[x = {row.n}\]",
    "a + b = n": lambda row: f"All in all that is {row.n - 1} + 1 = {row.n}",
    "n apples": lambda row: f"She has {row.n} apples in all.",
    "$n,nnn.00": lambda row: f"It costs ${row.n:,}.00.",
    "n%": lambda row: f"That is {row.n}%",
    "after </think>": lambda row: f"<think>is it {row.n + 1}?</think>It is {row.n}.",
    "wrong, then right": lambda row: rf"\boxed{{{row.n + 1}}} No: \boxed{{{row.n}}}",
}

WRONG: dict[str, Write] = {
    "#### n+1": lambda row: f"#### {row.n + 1}",
    r"\boxed{n+1}": lambda row: rf"{row.solution} \boxed{{{row.n + 1}}}",
    r"\boxed{-n}": lambda row: rf"\boxed{{-{row.n}}}" if row.n else r"\boxed{-1}",
    r"\boxed{10n}": lambda row: rf"\boxed{{{row.n}0}}" if row.n else r"\boxed{10}",
    r"\boxed{n.5}": lambda row: rf"\boxed{{{row.n}.5}}",
    "the answer is n. No, n+1": lambda row: f"The answer is {row.n}. No, {row.n + 1}",
    "n or n+1": lambda row: f"It is {row.n} or {row.n + 1}",
    "a list of all numbers": lambda row: row.numbers,
    "the same in a box": lambda row: rf"\boxed{{{row.numbers}}}",
    "the same behind ####": lambda row: f"#### {row.numbers}",
    "n n+1": lambda row: f"{row.n} {row.n + 1}",
    r"\boxed{n} \boxed{n+1}": lambda row: rf"\boxed{{{row.n}}} \boxed{{{row.n + 1}}}",
    r"\boxed{n \text{ or } n+1}": lambda row: rf"\boxed{{{row.n} \text{{ or }} {row.n + 1}}}",
    r"\boxed{n \pm 1}": lambda row: rf"\boxed{{{row.n} \pm 1}}",
    r"\boxed{n, cut off": lambda row: rf"\boxed{{{row.n}",
    r"\boxed{\frac{n}{}}": lambda row: rf"\boxed{{\frac{{{row.n}}}{{}}}}",
    r"\boxed{[n-1, n+1]}": lambda row: rf"\boxed{{[{row.n - 1}, {row.n + 1}]}}",
    r"\boxed{\mathbb{R}}": lambda row: r"\boxed{\mathbb{R}}",
    r"\boxed{x \ge n}": lambda row: rf"\boxed{{x \ge {row.n}}}",
    r"\boxed{n 9^{9^9}}": lambda row: rf"\boxed{{{row.n} \cdot 9^{{9^{{9}}}}}}",
    r"\boxed{n + (10^9)!}": lambda row: rf"\boxed{{{row.n} + (10^9)!}}",
    "a right box, then #### n+1": lambda row: rf"\boxed{{{row.n}}} but #### {row.n + 1}",
    "prose, no number": lambda row: "I am sure that it is right.",
    "nothing": lambda row: "",
}

UNKNOWN: dict[str, Write] = {"the solution without its mark": lambda row: row.reasoning}


def read(path: Path, count: int) -> list[Row]:
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [Row(row["question"], row["answer"], row["answer"].rpartition("####")[2].strip()) for row in rows]


def made_up() -> list[Row]:
    numbers = (0, 3, 18, 72, 540, 1080, 25_000, 1_234_567)
    return [Row("", f"{n} + 1 = <<{n}+1={n + 1}>>{n + 1}, less 1 is {n}.\n#### {n:,}", f"{n:,}") for n in numbers]


def values(scorer: Any, rows: list[Row], write: Write) -> list[float | None]:
    """The gold answer is GSM8K's whole solution, as the dataset has it."""
    completions = tuple(Completion(write(row), columns={"answer": row.solution}) for row in rows)
    return [score.value for score in scorer.score(Group("", completions)).scores]


def report(scorer: Any, rows: list[Row], forms: dict[str, Write], expected: float, show: int) -> tuple[int, int]:
    """Prints a line a form; gives how many agreed, and of how many."""
    agreed_in_all = 0
    for name, write in forms.items():
        found = values(scorer, rows, write)
        wrong = [row for row, value in zip(rows, found, strict=True) if value != expected]
        agreed_in_all += len(rows) - len(wrong)
        print(f"{name:34}{100 * (1 - len(wrong) / len(rows)):8.2f} %")
        for row in wrong[:show]:
            print(f"    gold {row.written}: {write(row)[-90:]!r}")
    return agreed_in_all, len(rows) * len(forms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSONL of GSM8K")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--show", type=int, default=3, help="disagreements of each form to list")
    args = parser.parse_args()
    rows = made_up() if args.data is None else read(args.data, args.rows)
    scorer = build(parse_options({"type": "math", "name": "correct"}))
    scorer.load()
    began = time.perf_counter()
    totals = []
    for title, forms, expected in (("right, must score 1", RIGHT, 1.0), ("wrong, must score 0", WRONG, 0.0)):
        print(f"\n{title}")
        totals.append((title, *report(scorer, rows, forms, expected, args.show)))
    print("\nnot known")
    report(scorer, rows, UNKNOWN, 1.0, args.show)
    took_s = time.perf_counter() - began
    print(f"\n{scorer.version}, {len(rows)} rows, {took_s:.0f} s")
    for title, agreed, of in totals:
        print(f"{title}: {agreed} of {of} agree ({100 * agreed / of:.2f} %)")


if __name__ == "__main__":
    main()
