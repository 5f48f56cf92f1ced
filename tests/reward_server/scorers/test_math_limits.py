"""The scorer `math` in bounded time: answers that would take an age are wrong at once, or a timeout of their own."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable

import pytest

from reward_server.client import RewardClient
from reward_server.launch import ServerProcess
from reward_server.scorers.base import Scorer
from reward_server.scorers.math_limits import OutOfTimeError, cpu_limit
from reward_server.types import Status
from tests.support.builders import make_group
from tests.support.math_answers import make, values


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return make()


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^9}}",
        "9^9^9^9^9",
        "(10^9)!",
        "2^{10^{9}}",
        "42 + 10^{-10^{10}}",
        "42e999999999",
        "e^{e^{e^{e^{e}}}}",
        r"\binom{1000000}{500000}",
        r"{1000000 \choose 500000}",
        r"\gcd(9^{9^9}, 42)",
        r"\sqrt[9^{9^9}]{42}",
        "9^{9^9} < 42",
        r"\int_0^1 e^{x^2} \sin(x^3) dx",
        r"\sum_{i=1}^{10^9} \sin(i)",
        "(x+1)^{1000}",
        "y = (x+y+z+w)^{300}",
        r"\{(x+y+z+w)^{300}, 42\}",
        r"(1+\sqrt{2}+\sqrt{3}+\sqrt{5})^{60}",
        r"\cos(\cos(\cos(\cos(\cos(\cos(\cos(42)))))))",
        "(" * 400,
        "|" * 400,
    ],
)
def test_answers_that_would_take_an_age_are_wrong_at_once(scorer: Scorer, answer: str) -> None:
    started = time.process_time()
    assert values(scorer, "42", rf"\boxed{{{answer}}}") == [0.0]
    assert time.process_time() - started < 3  # without the guard: minutes to for ever


@pytest.mark.parametrize(
    "answer",
    ["(x+1)^{1000}", r"\frac{x^{1000}-1}{x-1}", "(x+y+z+w)^{60}", r"\sin(\cos(\tan(\sin(\cos(\tan(\sin(x)))))))"],
)
def test_they_are_beside_a_gold_answer_with_variables_too(scorer: Scorer, answer: str) -> None:
    started = time.process_time()
    assert values(scorer, "x^2+2x+1", rf"\boxed{{{answer}}}") == [0.0]
    assert time.process_time() - started < 3


# Slips through the bounds and takes about ten seconds; with one tangent less it may be done in less than one.
SLOW_ANSWER = r"\boxed{\tan(\tan(\tan(\tan(\tan(10^{300})))))}"


def test_what_takes_an_age_all_the_same_is_a_timeout_and_leaves_its_siblings() -> None:
    result = make(answer_timeout_s=0.3).score(make_group(["42", SLOW_ANSWER, "41"], columns={"answer": "42"}))
    assert [score.status for score in result.scores] == [Status.OK, Status.TIMEOUT, Status.OK]  # type: ignore[union-attr]
    assert [score.value for score in result.scores] == [1.0, None, 0.0]  # type: ignore[union-attr]
    assert "answer_timeout_s = 0.3 s" in result.scores[1].message  # type: ignore[union-attr]


@pytest.mark.slow
def test_what_no_clock_in_the_process_can_end_is_killed_with_it_and_its_siblings_keep_their_scores(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve({"type": "math", "name": "correct", "timeout_s": 1, "answer_timeout_s": 1000})
    with RewardClient(server.endpoint) as client:
        answer = client.score(make_group(["42", SLOW_ANSWER, "41"], columns={"answer": "42"}), timeout_s=60)
    (scored,) = answer.scorers
    assert [score.value for score in scored.scores] == [1.0, None, 0.0]
    assert scored.scores[1].status is Status.TIMEOUT


@pytest.mark.parametrize("caught", [Exception, OutOfTimeError])  # the first never holds it, the second its first ring
def test_the_limit_ends_what_catches_exceptions(caught: type[BaseException]) -> None:
    def forever() -> None:
        with contextlib.suppress(caught):
            while True:
                pass
        while True:
            pass

    with pytest.raises(OutOfTimeError), cpu_limit(0.05):
        forever()


def test_the_limit_is_over_when_its_block_is() -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    with cpu_limit(0.05):
        pass
    began = time.process_time()
    while time.process_time() - began < 0.1:
        pass
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    "answer",
    [
        r"\binom{\binom{999}{499}}{2}",
        r"\binom{9999}{4999}",
        r"\binom{999}{499}^{9^{9}}",
        r"\gcd(9^{9^9}, 42)",
        rf"0.\overline{{{'142857' * 80}}}",
        r"e^{i^{i^{i^{i^{i}}}}}",
        r"0 < x < 9^{9^9}",
    ],
)
def test_nor_do_they_take_an_age(scorer: Scorer, answer: str) -> None:
    started = time.process_time()
    assert values(scorer, "(0,1)", rf"\boxed{{{answer}}}") == [0.0]
    assert values(scorer, "-1", rf"\boxed{{{answer}}}") == [0.0]
    assert time.process_time() - started < 3
