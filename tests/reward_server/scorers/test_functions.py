"""The scorers `function` and `group_function`: what a function gets, where it runs, what is said when it cannot."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

from reward_server.errors import InvalidGroupError, ScorerLoadError
from reward_server.scorers.base import ExecutorKind, Result, Scorer
from reward_server.scorers.registry import build, parse_options
from reward_server.types import Completion, Group, Status
from tests.support.builders import make_group

USER_FILE = """
import asyncio
import functools

import sibling

STEP = []

def length(completions, **kwargs):
    return [float(len(c)) for c in completions]

def everything(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **kwargs):
    log_extra("shout", [c.upper() for c in completions])
    for c in completions:
        log_metric("length", len(c))
    STEP.append((prompts, completion_ids, trainer_state.global_step, kwargs))
    return [1, None, True]

def narrow(completions, target):
    return [float(c == t) for c, t in zip(completions, target)]

def with_sibling(completions, **kwargs):
    return [sibling.ONE for _ in completions]

async def judge(completions, **kwargs):
    await asyncio.sleep(0)
    return [2.0 for _ in completions]

class Judge:
    async def __call__(self, completions, **kwargs):
        await asyncio.sleep(0)
        return [3.0 for _ in completions]

judge_object = Judge()

def threshold(completions, limit=3, **kwargs):
    return [float(len(c) > limit) for c in completions]

def make_threshold(limit):
    return functools.partial(threshold, limit=limit)

def needs_environments(completions, environments):
    return [0.0 for _ in completions]

def edits(completions, **kwargs):
    for messages in completions:
        messages[0]["content"] = "edited"
    return [0.0 for _ in completions]

def optional_answer(completions, **kwargs):
    return kwargs["answer"]

def reads_ids(completion_ids, **kwargs):
    return [len(ids) for ids in completion_ids]

def raises(completions, **kwargs):
    raise KeyError("lookup")

def rank(group):
    order = sorted(len(c) for c in group.contents())
    return [order.index(len(c)) for c in group.contents()]

async def async_rank(group, offset=0):
    return [offset + i for i in range(len(group))]

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sibling.py").write_text("ONE = 1.0")
    (tmp_path / "rewards.py").write_text(USER_FILE)
    return tmp_path


def make(folder: Path, attribute: str, type: str = "function", **options: Any) -> Scorer:
    mapping = {"type": type, "name": "f", "function": f"rewards.py:{attribute}", **options}
    return build(parse_options(mapping, base_dir=folder))


def loaded(*args: Any, **options: Any) -> Scorer:
    scorer = make(*args, **options)
    scorer.load()
    return scorer


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


def load_error(scorer: Scorer) -> str:
    with pytest.raises(ScorerLoadError) as raised:
        scorer.load()
    return str(raised.value)


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


# ---------------------------------------------------------------------------------------------------------- the version


def test_the_version_changes_with_the_source_and_not_with_the_folder(folder: Path, tmp_path: Path) -> None:
    first = loaded(folder, "length").version
    for name, source in [("same", USER_FILE), ("other", USER_FILE + "\n")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "sibling.py").write_text("")
        (tmp_path / name / "rewards.py").write_text(source)
    assert loaded(tmp_path / "same", "length").version == first
    assert loaded(tmp_path / "other", "length").version != first


def test_a_file_that_changes_is_read_anew_and_what_was_loaded_before_stays_what_it_was(tmp_path: Path) -> None:
    versions, values = [], []
    before = None
    for value in (1, 2):
        (tmp_path / "rewards.py").write_text(f"def f(completions, **_):\n    return [{value}.0] * len(completions)\n")
        scorer = build(parse_options({"type": "function", "name": "f", "function": "rewards.py:f"}, base_dir=tmp_path))
        scorer.load()
        before = before or scorer
        versions.append(scorer.version)
        values.append(scorer.score(make_group(["a"])).scores[0].value)
    assert values == [1.0, 2.0]
    assert len(set(versions)) == 2
    assert before is not None
    assert before.score(make_group(["a"])).scores[0].value == 1.0


def test_a_module_that_changed_since_its_import_is_refused_where_the_version_would_not_be_what_runs(
    tmp_path: Path,
) -> None:
    def load(value: int) -> None:
        (tmp_path / "changing_rewards.py").write_text(f"def f(completions, **_):\n    return [{value}.0]\n")
        options = {"type": "function", "name": "f", "function": "changing_rewards:f"}
        build(parse_options(options, base_dir=tmp_path)).load()

    load(1)
    with pytest.raises(ScorerLoadError, match="has changed since this process imported changing_rewards"):
        load(2)
    load(1)


def test_a_function_is_deterministic_only_if_it_is_said_to_be(folder: Path) -> None:
    assert not make(folder, "length").deterministic
    assert make(folder, "length", deterministic=True).deterministic


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_a_file_that_is_not_there_is_named_with_the_folders_looked_in(folder: Path) -> None:
    scorer = build(parse_options({"type": "function", "name": "f", "function": "nope.py:f"}, base_dir=folder))
    assert load_error(scorer).startswith(f"nope.py:f: there is no file 'nope.py' in {folder} or ")


def test_a_module_that_is_not_there_is_named_without_a_traceback(folder: Path) -> None:
    scorer = build(parse_options({"type": "function", "name": "f", "function": "no_such_rewards.x:f"}))
    message = load_error(scorer)
    assert message.startswith("no_such_rewards.x:f: there is no module 'no_such_rewards'")
    assert "Traceback" not in message


def test_an_attribute_that_is_not_there_names_the_nearest(folder: Path) -> None:
    assert load_error(make(folder, "lenght")).endswith("has no attribute 'lenght', did you mean 'length'?")


def test_an_import_that_raises_shows_the_users_traceback_and_only_that(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def helper():\n    return 1 / 0\n\nhelper()\n")
    message = load_error(make(tmp_path, "f"))
    assert message.startswith(f"rewards.py:f: importing {tmp_path / 'rewards.py'} raised\nTraceback")
    assert "line 4, in <module>" in message
    assert "line 2, in helper" in message
    assert message.endswith("ZeroDivisionError: division by zero")
    assert "loading.py" not in message
    assert "importlib" not in message


def test_a_file_that_is_no_python_shows_the_line(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("x = 1\ndef f(:\n")
    assert "line 2" in load_error(make(tmp_path, "f"))


def test_a_file_that_exits_when_imported_does_not_end_the_server(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("import sys\nsys.exit(3)\n")
    assert "SystemExit: 3" in load_error(make(tmp_path, "f"))


def test_what_is_no_function_says_what_it_is(folder: Path) -> None:
    assert "gives 3 of type int, not a function" in load_error(make(folder, "number"))
    assert "if it makes one, set factory: true" in load_error(make(folder, "Judge"))


def test_a_factory_that_raises_names_its_kwargs(folder: Path) -> None:
    message = load_error(make(folder, "make_threshold", factory=True, kwargs={"limmit": 1}))
    assert "the factory raised for kwargs {'limmit': 1}" in message
    assert "TypeError" in message


def test_a_bound_argument_that_the_function_does_not_take_names_the_nearest(folder: Path) -> None:
    assert "takes no argument 'targett', which kwargs gives it, did you mean 'target'?" in load_error(
        make(folder, "narrow", kwargs={"targett": "x"})
    )


def test_a_function_of_live_environments_is_refused(folder: Path) -> None:
    assert "keep it among the trainer's own reward_funcs" in load_error(make(folder, "needs_environments"))


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
