"""The heuristics: regex, match, keywords, repetition."""

from __future__ import annotations

import pytest

from reward_server.scorers.base import ExecutorKind
from reward_server.types import Completion, Group
from tests.support.scorers import make, problem_of, values

# ---------------------------------------------------------------------------------------------------------------- regex


def test_regex_looks_for_a_part_or_the_whole() -> None:
    assert values(make("regex", pattern=r"\d+"), "a1", "a") == [1.0, 0.0]
    assert values(make("regex", pattern=r"\d+", whole=True), "1", "a1") == [1.0, 0.0]


def test_regex_takes_flags() -> None:
    pattern = "<think>.*</think>a"
    assert values(make("regex", pattern=pattern, flags=["dotall", "ignorecase"]), "<think>\n</think>A") == [1.0]
    assert values(make("regex", pattern=pattern), "<think>\n</think>A") == [0.0]


def test_regex_runs_in_a_worker_since_it_may_backtrack_for_ever() -> None:
    assert make("regex", pattern="(a+)+$").place is ExecutorKind.WORKER


def test_a_pattern_that_does_not_compile_is_refused_with_the_reason() -> None:
    assert "scorers[0].pattern: '(' is no regular expression: missing ), unterminated subpattern" in problem_of(
        "regex", pattern="("
    )


# ---------------------------------------------------------------------------------------------------------------- match


def test_match_is_normalised_unless_told_otherwise() -> None:
    assert values(make("match"), " Paris. ", "Pairs", answer="paris") == [1.0, 0.0]
    assert values(make("match", compare="exact"), "Paris", "paris", answer="paris") == [0.0, 1.0]


def test_match_contains_finds_whole_words() -> None:
    assert values(make("match", compare="contains"), "It is art, no?", "the start", answer="art") == [1.0, 0.0]


def test_match_does_not_take_punctuation_for_nothing() -> None:
    assert values(make("match"), "-", "+", answer="+") == [0.0, 1.0]


def test_match_extracts_the_last_group_and_scores_zero_without_one() -> None:
    scorer = make("match", extract="<answer>(.*?)</answer>", column="target")
    assert scorer.place is ExecutorKind.WORKER
    assert scorer.required_columns == ("target",)
    said = "<answer>1</answer><answer>\n2</answer>"
    assert values(scorer, said, "2", target=2) == [1.0, 0.0]


def test_match_takes_a_list_and_is_not_applicable_to_null() -> None:
    assert values(make("match"), "b", answer=["a", "b"]) == [1.0]
    assert values(make("match"), "b", answer=None) == [None]


# ------------------------------------------------------------------------------------------------------------- keywords


def test_keywords_are_whole_words_in_any_case() -> None:
    assert values(make("keywords", words=["art", "c++"]), "Art.", "start", "in C++?") == [1.0, 0.0, 1.0]
    assert values(make("keywords", words=["art"], ignore_case=False), "Art", "art") == [0.0, 1.0]


@pytest.mark.parametrize(
    ("require", "expected"), [("any", [0.0, 1.0, 1.0]), ("all", [0.0, 0.0, 1.0]), ("none", [1.0, 0.0, 0.0])]
)
def test_keywords_require_any_all_or_none(require: str, expected: list[float]) -> None:
    assert values(make("keywords", words=["a", "b"], require=require), "c", "a", "b a") == expected


def test_an_empty_keyword_is_refused() -> None:
    assert "['a', ' '] has an empty word, which every text contains" in problem_of("keywords", words=["a", " "])


# ----------------------------------------------------------------------------------------------------------- repetition


def test_repetition_is_minus_the_share_of_repeated_ngrams() -> None:
    # "a a a a": bigrams aa aa aa, one unique of three; "a b c": ab bc, none repeats
    assert values(make("repetition", ngram=2), "a a a a", "a b c", "a", "") == [pytest.approx(-2 / 3), 0.0, 0.0, 0.0]


def test_repetition_of_tokens_equals_trls() -> None:
    from trl.rewards import get_repetition_penalty_reward  # noqa: PLC0415

    ids = [(1, 2, 3, 1, 2, 3, 1, 2), (1, 1, 1, 1), (1, 2), (4, 5, 6, 7)]
    group = Group("p", tuple(Completion("x", token_ids=one) for one in ids))
    ours = [score.value for score in make("repetition", unit="tokens").score(group).scores]  # type: ignore[union-attr]
    assert ours == pytest.approx(get_repetition_penalty_reward(ngram_size=3)(completion_ids=ids))


def test_heuristics_take_microseconds_and_run_on_the_loop() -> None:
    for scorer in (make("length", max=1), make("match"), make("keywords", words=["a"]), make("repetition")):
        assert scorer.place is ExecutorKind.LOOP
        assert scorer.deterministic
