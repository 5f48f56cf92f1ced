r"""The scorer `math`: what a final answer is, what is equal, and what a policy gains by cheating (nothing)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.errors import InvalidGroupError
from reward_server.launch import ServerProcess
from reward_server.scorers.base import ExecutorKind, Scorer
from reward_server.scorers.math import final_answer
from reward_server.types import Completion, Group, Status
from tests.support.builders import make_group
from tests.support.math_answers import make, values

GSM8K_SOLUTION = "She sold 48/2 = <<48/2=24>>24 in May.\nShe sold 48+24 = <<48+24=72>>72 in all.\n#### 72"


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return make()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{1}" + "\n#### 2", "2"),
        ("#### 1\n" + r"or \boxed{2}", "2"),
        (GSM8K_SOLUTION, "72"),
        ("the answer is 5. No, 6", "6"),
        ("it costs $48 and then $24 more", "$24"),
        ("so $x = 3$ holds", "$x = 3$"),
        ("one of 1, 2 or 3", "1, 2 or 3"),
        ("#### Step 2: add\nthat is 42", "42"),
        (r"<think>\boxed{4}</think>it is 5", "5"),
        (r"cut off: \boxed{12", None),
        ("no number at all", None),
        ("", None),
    ],
)
def test_the_final_answer_is_the_last_mark_or_else_the_last_number_or_formula(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        (GSM8K_SOLUTION, "#### 72"),
        (GSM8K_SOLUTION, r"\boxed{72}"),
        (GSM8K_SOLUTION, "That makes 72 clips."),
        ("1,080", "#### $1,080.00"),
        ("1080", r"\boxed{1{,}080}"),
        ("10080", r"\boxed{10\,080}"),
        ("18", "She makes $18 every day."),
        ("18", r"\boxed{18 \text{ dollars}}"),
        ("18", "#### 18 dollars"),
        (42, "**Answer:** **42**"),
        (7.5, "$7.50"),
        ("-5", "x = −5"),
        ("1/2", "it is 0.5"),
        (r"\frac{1}{2}", r"\(\dfrac12\)"),
        ("3 1/2", r"\boxed{3\frac12}"),
        ("50", "50%"),
        ("1000000", "1e6"),
        ("2", r"\boxed{x = 2}"),
        ("5", r"\boxed{\log_2 32}"),
        (r"\sqrt{2}", r"\boxed{2^{1/2}}"),
        ("x^2+2x+1", r"\boxed{(x+1)^2}"),
        ("5, 6, 7", "7, 5 or 6"),
        ("(1,2)", r"\boxed{(1, 2)}"),
        ("B", r"\boxed{\text{B}}"),
        ("No solution", r"\boxed{\text{no solution}}"),
        ([1, 2], "2"),
        ("The answer is 42.", "42"),
        (r"Thus the total is \boxed{42} apples.", "42"),
        ("42", r"\boxed{42}}"),
        ("42", r"\boxed{{42}}"),
        ("42", r"\boxed{\boxed{42}}"),
        ("42", r"\boxed{42,}"),
        ("42", r"\boxed{\text{42}}"),
        ("42", r"\boxed 42"),
        ("42", r"\boxed{a = b = 42}"),
        ("42", r"\boxed{42 \text{ more than Tom}}"),
        ("42", r"#### **42**"),
        ("42", "4.2e1"),
        ("0.333333333", "1/3"),
        ("2^{100}", r"\boxed{1267650600228229401496703205376}"),
        ("x^{100}", r"\boxed{x^{100}}"),
        ("5", r"\boxed{\sqrt[3]{125}}"),
    ],
)
def test_right_answers_score_one_however_they_are_written(scorer: Scorer, gold: Any, completion: str) -> None:
    assert values(scorer, gold, completion) == [1.0]


@pytest.mark.parametrize(
    "completion",
    [
        "1, 2, 3, 41, 42",
        "41 or 42",
        "1 2 3 42",
        "$41$, $42$",
        r"\boxed{41, 42}",
        r"\boxed{41 \text{ or } 42}",
        r"\boxed{\{1, \ldots, 42\}}",
        r"\boxed{42}\boxed{41}",
        r"\boxed{42} but #### 41",
        "#### 41 42",
        r"\boxed{(-\infty, \infty)}",
        r"\boxed{\mathbb{R}}",
        r"\boxed{x}",
        r"\boxed{42x}",
        r"\boxed{42 \pm 1}",
        r"\boxed{\text{any number, such as } 42}",
        r"\boxed{42",
        r"\boxed{42 \text{ or more}}",
        r"\boxed{\text{at least } 42}",
        r"\boxed{\text{more than } 42}",
        r"\boxed{x \le 42}",
        r"\boxed{[41, 43]}",
        r"\boxed{42 = 41}",
        r"\boxed{42 \neq 41}",
        r"\boxed{\frac{42}{}}",
        r"\boxed{\frac{\frac{\frac{42}}}",
        r"\boxed{42 + 0x}",
        r"\boxed{42 + \epsilon}",
        r"\boxed{42_{41}^{40}}",
        r"\boxed{42 \\ 41}",
        r"\boxed{42 & 41}",
        r"\boxed{\begin{cases} 42 \\ 41 \end{cases}}",
        "The answer is 42. No, 41",
        "#### 42 #### 41",
        "forty-two, as always",
        "",
    ],
)
def test_hedging_lists_and_tricks_score_nothing(scorer: Scorer, completion: str) -> None:
    assert values(scorer, "42", completion) == [0.0]


# ------------------------------------------------------------------------------- what math-verify leaves undecided

SAME = [
    (r"0.\overline{3}", "1/3"),
    ("1/3", r"0.\overline{3}"),
    ("1/3", r"0.\bar{3}"),
    ("1/3", r"0.\dot{3}"),
    ("1/3", r"0.\overline 3"),
    ("1/3", "0.(3)"),
    (r"\frac{1}{6}", r"0.1\overline{6}"),
    ("-4/3", r"-1.\overline{3}"),
    ("1/7", r"0.\overline{142857}"),
    ("1", r"0.\overline{9}"),
    ("1/3", r".\overline{3}"),
    (r"\binom{5}{2}", "10"),
    ("10", r"\binom{5}{2}"),
    (r"{5 \choose 2}", "10"),
    (r"\dbinom{12}{3} + 1", "221"),
    ("10", r"\binom52"),
    (r"\binom{n}{2}", r"\binom{n}{2}"),
    (r"\gcd(12, 18)", "6"),
    ("(0,1)", "0<x<1"),
    ("0 < x < 1", "(0,1)"),
    ("(0,1)", "1 > y > 0"),
    ("0 < x < 1", "1 > x > 0"),
    ("[0,1)", r"0 \le x < 1"),
    (r"x \in (0,1)", "0<x<1"),
    (r"[2,\infty)", r"x \ge 2"),
    (r"x \geq 2", r"[2,\infty)"),
    ("2 < x", r"(2,\infty)"),
    (r"(-\infty,\frac{1}{2}]", r"x \leq 0.5"),
    (r"(-\infty,0)\cup(1,\infty)", r"x<0 \text{ or } x>1"),
    (r"[\sqrt{4}, 2^2]", r"2 \le t \le 4.0"),
    (r"x \neq 2", r"(-\infty,2)\cup(2,\infty)"),
    ("-1", r"e^{i\pi}"),
    (r"e^{i\pi}", "-1"),
    ("0", r"e^{\pi i} + 1"),
    ("-1", "i^2"),
    (r"\frac{1}{2} + \frac{\sqrt{3}}{2} i", r"e^{i\pi/3}"),
    ("3 + 4i", "4i + 3"),
]


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_repeating_decimals_small_binomials_intervals_and_i_are_decided(scorer: Scorer, gold: str, answer: str) -> None:
    assert values(scorer, gold, rf"\boxed{{{answer}}}") == [1.0]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/3", r"0.\overline{4}"),
        ("1/3", "0.3(3)4"),
        ("0.3", r"0.\overline{3}"),
        (r"\binom{5}{2}", "5/2"),
        (r"\binom{5}{2}", r"\binom{5}{1}"),
        (r"\binom{n}{2}", r"\binom{n}{3}"),
        ("(0,1)", r"0 < x \le 1"),
        ("(0,1)", "0 < x < 2"),
        ("0 < x < 1", "0 < y < 1"),
        (r"[2,\infty)", "x > 2"),
        (r"x \ge 2", r"y \ge 2"),
        ("(0,1)", "x > 0"),
        ("(0,1)", "x < y"),
        ("1", "x > 0"),
        ("1", r"e^{i\pi}"),
        ("-1", "i"),
        ("3 + 4i", "3 - 4i"),
        ("x", "i"),
        ("i", "j"),
    ],
)
def test_and_what_is_near_to_them_is_not_the_same(scorer: Scorer, gold: str, answer: str) -> None:
    assert values(scorer, gold, rf"\boxed{{{answer}}}") == [0.0]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/3", "0.333..."),
        ("(0, 1)", r"\{x \mid 0 < x < 1\}"),
        ("(-2, 2)", "x^2 < 4"),
        (r"(0,\infty)", r"\text{all positive numbers}"),
    ],
)
def test_what_the_rules_name_as_undecided_scores_nothing(scorer: Scorer, gold: str, answer: str) -> None:
    assert values(scorer, gold, rf"\boxed{{{answer}}}") == [0.0]


# ------------------------------------------------------------------------------------------------- gold answers


def test_gold_answers_that_cannot_be_read_are_counted_and_said_once_for_each_kind_of_value(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scorer = make()
    with caplog.at_level(logging.WARNING, "reward_server"):
        results = [
            scorer.score(make_group(["42", "41"], columns={"answer": gold}))
            for gold in ("?!", "§§", {"a": 1}, None, "42")
        ]
    shares = [result.metrics["correct/unreadable_gold"] for result in results]  # type: ignore[union-attr]
    assert shares == [1.0, 1.0, 1.0, 0.0, 0.0]  # null says that there is no gold answer
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith(
        "scorer 'correct': the column 'answer' holds a gold answer that cannot be read, of type str: '?!'."
    )
    assert "of type dict: {'a': 1}" in said[1]
    assert results[0].scores[0].message == "the gold answer cannot be read: '?!'"  # type: ignore[union-attr]


def test_a_group_may_hold_readable_and_unreadable_gold_answers(serve: Callable[..., ServerProcess]) -> None:
    server = serve({"type": "math", "name": "correct"})
    group = Group("p", tuple(Completion("42", columns={"answer": gold}) for gold in ("42", "?!", "41", "?!")))
    with RewardClient(server.endpoint) as client:
        (scored,) = client.score(group).scorers
    assert [score.value for score in scored.scores] == [1.0, None, 0.0, None]
    assert scored.metrics == {"correct/unreadable_gold": 0.5}


def test_letters_in_another_order_are_another_word(scorer: Scorer) -> None:
    assert values(scorer, "Paris", r"\boxed{paris}", r"\boxed{Pairs}") == [1.0, 0.0]


@pytest.mark.parametrize("gold", [None, "", "?!", [], True, {"a": 1}])
def test_a_gold_answer_that_cannot_be_read_is_not_applicable(scorer: Scorer, gold: Any) -> None:
    (score,) = scorer.score(make_group(["42"], columns={"answer": gold})).scores  # type: ignore[union-attr]
    assert score.status is Status.NOT_APPLICABLE


def test_with_formats_boxed_only_a_box_counts() -> None:
    assert values(make(formats=["boxed"]), "42", "42", "#### 42", r"\boxed{42}") == [0.0, 0.0, 1.0]


def test_messages_are_read_as_what_the_assistant_said(scorer: Scorer) -> None:
    said = [
        {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]},
        {"role": "tool", "content": "41"},
        {"role": "assistant", "content": [{"type": "text", "text": "it is "}, {"type": "text", "text": "42"}]},
        {"role": "user", "content": "43?"},
    ]
    assert values(scorer, "42", said) == [1.0]


def test_a_gold_answer_may_differ_between_siblings_and_the_column_is_named_by_an_option() -> None:
    scorer = make(column="target")
    assert scorer.required_columns == ("target",)
    with pytest.raises(InvalidGroupError, match=r"scorer 'correct' needs the column 'target', .* has \['answer'\]"):
        values(scorer, "42", "42")


def test_the_extracted_answers_are_logged_beside_the_completions(scorer: Scorer) -> None:
    result = scorer.score(make_group(["so 42", "dunno"], columns={"answer": "42"}))
    assert result.extra == {"correct_answer": ["42", None]}  # type: ignore[union-attr]


def test_it_runs_in_a_worker_where_it_can_be_killed_and_its_version_names_math_verify(scorer: Scorer) -> None:
    assert scorer.place is ExecutorKind.WORKER
    assert scorer.deterministic
    assert "math-verify-0." in scorer.version
