"""The scorers `function` and `group_function`: what a function gets, and where it runs."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

from reward_server.errors import InvalidGroupError
from reward_server.scorers.base import ExecutorKind, Result, Scorer
from reward_server.scorers.registry import build, parse_options
from reward_server.types import Completion, Group, Status
from tests.support.builders import make_group
from tests.support.functions import load_error, loaded, make, write_user_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_user_files(tmp_path)


def trl(attribute: str, **options: Any) -> Scorer:
    scorer = build(parse_options({"type": "function", "name": "f", "function": f"trl.rewards:{attribute}", **options}))
    scorer.load()
    return scorer


def result_of(scorer: Scorer, group: Group) -> Result:
    answer = scorer.score(group)
    assert isinstance(answer, Result)
    return answer


def values(scorer: Scorer, group: Group) -> list[float | None]:
    return [score.value for score in result_of(scorer, group).scores]


def chat(*texts: str, **names: Any) -> Group:
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    return make_group(completions, prompt=[{"role": "user", "content": "q"}], **names)


def with_ids(*lengths: int, **names: Any) -> Group:
    return Group("p", tuple(Completion("x", token_ids=(1,) * length or None) for length in lengths), **names)


# ------------------------------------------------------------------------------------------------- what a function gets


def test_a_function_gets_all_that_trl_passes(folder: Path) -> None:
    scorer = loaded(folder, "everything")
    group = Group(
        "p",
        tuple(Completion(text, token_ids=ids) for text, ids in [("a", (1,)), ("bb", (1, 2)), ("", None)]),
        columns={"answer": [1, 2], "prompt": "hidden", "completion_ids": "hidden"},
        step=7,
    )
    result = result_of(scorer, group)
    assert [score.status for score in result.scores] == [Status.OK, Status.NOT_APPLICABLE, Status.OK]
    assert [score.value for score in result.scores] == [1.0, None, 1.0]
    assert result.extra == {"shout": ["A", "BB", ""]}
    assert result.metrics == {"length": 1.0}  # (1 + 2 + 0) / 3
    prompts, ids, step, columns = scorer._function.__globals__["STEP"][0]  # type: ignore[attr-defined]
    assert prompts == ["p"] * 3
    assert ids == [[1], [1, 2], []]
    assert step == 7
    assert columns == {"answer": [[1, 2]] * 3}


def test_a_function_without_kwargs_gets_only_what_it_names(folder: Path) -> None:
    scorer = loaded(folder, "narrow")
    assert scorer.required_columns == ("target",)
    assert values(scorer, make_group(["a", "b"], columns={"target": "a", "other": 1})) == [1.0, 0.0]


def test_a_missing_column_is_the_groups_fault_and_is_named(folder: Path) -> None:
    scorer = loaded(folder, "narrow")
    with pytest.raises(InvalidGroupError, match=r"scorer 'f' needs the column 'target', and the group has \['other'\]"):
        scorer.score(make_group(["a"], columns={"other": 1}))


def test_columns_that_only_the_body_reads_are_named_by_an_option(folder: Path) -> None:
    scorer = loaded(folder, "optional_answer", required_columns=["answer"])
    assert scorer.required_columns == ("answer",)
    with pytest.raises(InvalidGroupError, match="'answer'"):
        scorer.score(make_group(["a"]))


def test_columns_that_differ_between_siblings_are_given_each_its_own(folder: Path) -> None:
    scorer = loaded(folder, "optional_answer")
    group = Group("p", (Completion("a", columns={"answer": 5}), Completion("b")), columns={"answer": 1})
    assert values(scorer, group) == [5.0, 1.0]


def test_token_ids_that_a_function_needs_and_were_not_sent_are_asked_for(folder: Path) -> None:
    scorer = loaded(folder, "reads_ids")
    assert scorer.required_columns == ()
    assert values(scorer, with_ids(2, 0)) == [2.0, 0.0]
    with pytest.raises(InvalidGroupError, match="scorer 'f' needs the completions' token ids"):
        scorer.score(make_group(["a"]))


def test_kwargs_are_bound_to_every_call(folder: Path) -> None:
    assert values(loaded(folder, "threshold", kwargs={"limit": 1}), make_group(["ab", "a"])) == [1.0, 0.0]


def test_a_factory_is_called_once_with_kwargs(folder: Path) -> None:
    scorer = loaded(folder, "make_threshold", factory=True, kwargs={"limit": 1})
    assert values(scorer, make_group(["ab", "a"])) == [1.0, 0.0]


def test_a_function_that_edits_messages_does_not_edit_the_group(folder: Path) -> None:
    group = chat("said")
    loaded(folder, "edits").score(group)
    assert group.completions[0].content == [{"role": "assistant", "content": "said"}]


def test_an_exception_of_the_function_is_not_swallowed(folder: Path) -> None:
    with pytest.raises(KeyError, match="lookup"):
        loaded(folder, "raises").score(make_group(["a"]))


def test_a_file_imports_its_siblings(folder: Path) -> None:
    assert values(loaded(folder, "with_sibling"), make_group(["a"])) == [1.0]


# -------------------------------------------------------------------------------------------------------- where it runs


def test_a_synchronous_function_runs_in_a_worker_and_an_async_one_on_the_loop(folder: Path) -> None:
    assert make(folder, "length").place is ExecutorKind.WORKER
    assert make(folder, "judge").place is ExecutorKind.LOOP
    assert make(folder, "length", place="thread", concurrency=8).place is ExecutorKind.THREAD
    assert make(folder, "length", place="thread", concurrency=8).concurrency == 8


def test_an_async_function_of_an_installed_module_is_found_without_importing_it() -> None:
    scorer = build(parse_options({"type": "function", "name": "f", "function": "asyncio.tasks:wait_for"}))
    assert scorer.place is ExecutorKind.LOOP


async def test_async_groups_run_at_the_same_time_on_the_loop(folder: Path) -> None:
    scorer = loaded(folder, "judge")
    answers = [scorer.score(make_group(["a", "b"])) for _ in range(3)]
    assert all(inspect.isawaitable(answer) for answer in answers)
    results = await asyncio.gather(*answers)  # type: ignore[arg-type]
    assert [[score.value for score in result.scores] for result in results] == [[2.0, 2.0]] * 3


@pytest.mark.parametrize("place", ["worker", "thread"])
def test_an_async_function_off_the_loop_is_awaited_there(folder: Path, place: str) -> None:
    scorer = loaded(folder, "judge_object", place=place)
    assert [values(scorer, make_group(["a"])) for _ in range(2)] == [[3.0], [3.0]]
    scorer.close()


def test_a_synchronous_function_is_refused_on_the_loop(folder: Path) -> None:
    assert "is not async and would block the server's event loop" in load_error(make(folder, "length", place="loop"))


def test_a_function_is_deterministic_only_if_it_is_said_to_be(folder: Path) -> None:
    assert not make(folder, "length").deterministic
    assert make(folder, "length", deterministic=True).deterministic


# ------------------------------------------------------------------------------------------------------ group functions


def test_a_group_function_sees_the_group_and_returns_a_score_each(folder: Path) -> None:
    scorer = loaded(folder, "rank", type="group_function")
    assert scorer.group_aware
    assert scorer.place is ExecutorKind.WORKER
    assert values(scorer, make_group(["aaa", "a", "aa"])) == [2.0, 0.0, 1.0]


async def test_a_group_function_may_be_async_and_have_kwargs(folder: Path) -> None:
    scorer = loaded(folder, "async_rank", type="group_function", kwargs={"offset": 5})
    assert scorer.place is ExecutorKind.LOOP
    result = await scorer.score(make_group(["a", "b"]))  # type: ignore[misc]
    assert [score.value for score in result.scores] == [5.0, 6.0]


def test_a_trl_function_may_be_group_aware(folder: Path) -> None:
    assert make(folder, "length", group_aware=True).group_aware
    assert not make(folder, "length").group_aware


# -------------------------------------------------------------------------------------------------- TRL's own functions


def test_trls_accuracy_reward_works_as_it_is() -> None:
    scorer = trl("accuracy_reward")
    assert scorer.required_columns == ("solution",)
    result = result_of(scorer, chat(r"\boxed{\frac{1}{3}}", r"\boxed{2}", columns={"solution": r"$\frac{1}{3}$"}))
    assert [score.value for score in result.scores] == [1.0, 0.0]
    assert result.extra["answer_parsed"][1] == "[2, '2']"


def test_trls_accuracy_reward_is_not_applicable_without_a_readable_solution() -> None:
    result = result_of(trl("accuracy_reward"), chat("1", columns={"solution": ""}))
    assert result.scores[0].status is Status.NOT_APPLICABLE


def test_trls_reasoning_accuracy_reward_works_as_it_is() -> None:
    scorer = trl("reasoning_accuracy_reward", kwargs={"reasoning_delimiters": ["</r>"]})
    assert values(scorer, chat(r"…</r>\boxed{2}", r"\boxed{2}", columns={"solution": "$2$"})) == [1.0, 0.0]


def test_trls_think_format_reward_works_as_it_is() -> None:
    assert values(trl("think_format_reward"), chat("<think>a</think>b", "b")) == [1.0, 0.0]


def test_trls_soft_overlong_punishment_is_made_by_its_factory() -> None:
    scorer = trl(
        "get_soft_overlong_punishment", factory=True, kwargs={"max_completion_len": 10, "soft_punish_cache": 4}
    )
    assert values(scorer, with_ids(6, 8, 11)) == [0.0, -0.5, -1.0]  # (10 - 4 - 8) / 4


def test_trls_repetition_penalty_is_made_by_its_factory() -> None:
    scorer = trl("get_repetition_penalty_reward", factory=True, kwargs={"ngram_size": 1})
    assert values(scorer, with_ids(4)) == [-0.75]  # one unique of four


def test_trls_cosine_scaled_reward_is_made_by_its_factory() -> None:
    scorer = trl("get_cosine_scaled_reward", factory=True, kwargs={"max_len": 4})
    assert scorer.required_columns == ("solution",)
    right = Completion([{"role": "assistant", "content": r"\boxed{2}"}], token_ids=(1, 1))
    group = Group([{"role": "user", "content": "q"}], (right,), columns={"solution": "$2$"})
    assert values(scorer, group) == [0.75]  # half way between 1.0 and 0.5
