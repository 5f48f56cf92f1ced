"""Each adapter, called as its trainer documents it, against a real server: the reward, the group, and no reward."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from reward_server.adapters import ms_swift, nemo_gym, openrlhf, slime, verifiers, verl
from reward_server.adapters.service import NoRewardError, Service
from reward_server.adapters.settings import Settings
from reward_server.errors import ConfigError, CredentialsError, UnavailableError
from reward_server.launch import launch_server

ALONE = "compare the completions of a group, and {} shows one completion without its group's name"
RANK_OF = {"a": 0.0, "bb": 1.0, "ccc": 2.0}


def test_an_adapter_imports_nothing_of_its_trainer() -> None:
    names = ("verl", "openrlhf", "slime", "ms_swift", "nemo_gym", "verifiers")
    code = (
        f"import importlib, sys; before = set(sys.modules)\nfor name in {names}:\n"
        "    importlib.import_module('reward_server.adapters.' + name)\n"
        "heavy = {'verl', 'openrlhf', 'slime', 'swift', 'nemo_gym', 'verifiers', 'torch', 'ray', 'trl', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


def test_columns_travel_in_the_same_form_as_from_trl() -> None:
    service = Service(Settings.read({"endpoint": "rewards:50051"}, {}), "verl")
    row = {"share": np.float32(0.1), "due": datetime.date(2026, 1, 2), "answer": np.array([1.0, np.nan])}
    assert service.columns(row) == {"share": 0.1, "due": "2026-01-02", "answer": [1.0, None]}


# --------------------------------------------------------------------------------------------------------------- verl


def verl_call(endpoint: str, text: str = "4", **more: Any) -> Any:
    info = {"index": np.int64(3), "num_turns": 1, "rollout_reward_scores": {}, **more.pop("extra_info", {})}
    settings = {"endpoint": endpoint, "columns": {"answer": "ground_truth"}, "scorers": ["graded"], **more}
    return verl.compute_score("gsm8k", text, "4", info, **settings)


async def test_verl_gets_a_score_and_the_scorers_beside_it(endpoint: str) -> None:
    assert await verl_call(endpoint) == {"score": 2.0, "graded": 1.0}
    assert await verl_call(endpoint, "5", weights="graded=7") == {"score": 0.0, "graded": 0.0}
    assert await verl_call(endpoint, columns="answer=ground_truth,index") == {"score": 2.0, "graded": 1.0}


async def test_verl_gets_an_exception_for_no_reward(endpoint: str) -> None:
    with pytest.raises(
        NoRewardError, match=r"scorer 'graded' failed on completion 0 .*FAILED: ValueError: told to raise"
    ):
        await verl_call(endpoint, "raise")
    with pytest.raises(NoRewardError, match="no scorer has anything to say"):
        await verl_call(endpoint, "skip")


async def test_verls_samples_of_a_group_meet_without_an_index(endpoint: str) -> None:
    keys = {"group_key": "uid", "group_size": 3, "scorers": ["rank"], "timeout_s": 30}
    calls = [verl_call(endpoint, text, extra_info={"uid": "u1"}, **keys) for text in RANK_OF]
    assert [answer["score"] for answer in await asyncio.gather(*calls)] == list(RANK_OF.values())


def test_samples_from_workers_that_know_nothing_of_one_another_meet(endpoint: str) -> None:
    code = (
        "import asyncio, sys\nfrom reward_server.adapters.verl import compute_score\n"
        "settings = {'endpoint': sys.argv[1], 'scorers': 'rank', 'group_key': 'uid', 'group_size': 3}\n"
        "answer = compute_score('d', sys.argv[2], '4', {'uid': 'u3'}, **settings)\n"
        "print(asyncio.run(answer)['score'])"
    )
    command = [sys.executable, "-c", code, endpoint]
    workers = [subprocess.Popen([*command, text], stdout=subprocess.PIPE, text=True) for text in RANK_OF]
    assert [float(worker.communicate(timeout=60)[0]) for worker in workers] == list(RANK_OF.values())


async def test_a_row_of_verls_validation_is_scored_alone_by_its_own_scorers(endpoint: str) -> None:
    keys = {"group_key": "uid", "group_size": 3, "scorers": ["graded", "rank"], "timeout_s": 3}
    told = {"uid": "u2", "split": "test"}
    assert (await verl_call(endpoint, extra_info=told, validation_scorers="graded", **keys))["score"] == 2.0
    with pytest.raises(ConfigError, match=ALONE.format("verl")):
        await verl_call(endpoint, extra_info=told, **keys)


async def test_a_group_whose_name_is_zero_is_a_group(endpoint: str) -> None:
    keys = {"group_key": "row", "group_size": 3, "scorers": ["rank"], "timeout_s": 30}
    calls = [verl_call(endpoint, text, extra_info={"row": np.int64(0)}, **keys) for text in RANK_OF]
    assert [answer["score"] for answer in await asyncio.gather(*calls)] == list(RANK_OF.values())


async def test_a_position_that_is_no_number_is_named_and_validation_needs_none(endpoint: str) -> None:
    keys = {"group_key": "uid", "group_size": 3, "index_key": "at", "validation_scorers": "graded"}
    with pytest.raises(ConfigError, match="index_key is 'at', which holds 'first' and not a position from 0 to 2"):
        await verl_call(endpoint, extra_info={"uid": "u4", "at": "first"}, **keys)
    assert (await verl_call(endpoint, extra_info={"uid": "u4", "split": "test"}, **keys))["score"] == 2.0


async def test_a_key_that_verl_does_not_pass_is_named_with_those_that_it_does(endpoint: str) -> None:
    with pytest.raises(
        ConfigError, match=r"group_key is 'uid', and verl passed \['data_source', 'ground_truth', 'index'"
    ):
        await verl_call(endpoint, group_key="uid", group_size=2)
    with pytest.raises(ConfigError, match=r"columns names the keys \['nothing'\], and verl passed"):
        await verl_call(endpoint, columns="answer=nothing")
    with pytest.raises(ConfigError, match="group_size is not given"):
        await verl_call(endpoint, group_key="index")


# ---------------------------------------------------------------------------------------------------------- OpenRLHF


def test_openrlhf_gets_numbers_and_logs_and_an_exception_for_no_reward(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv("REWARD_SCORERS", "graded")
    environment.setenv("REWARD_STRIP", "<|end|>")
    answer = openrlhf.reward_func(["<|user|>2 + 2?<|bot|>4<|end|>"], ["<|user|>2 + 2?<|bot|>"], ["4"])
    assert answer == {"rewards": 2.0, "scores": 2.0, "extra_logs": {"graded": 1.0}}
    with pytest.raises(NoRewardError):
        openrlhf.reward_func(["p raise"], ["p "], ["4"])
    assert "a completion has no reward" in caplog.text  # OpenRLHF itself says it at the level of information
    with pytest.raises(ConfigError, match="the query does not contain the prompt"):
        openrlhf.reward_func(["another"], ["prompt"], ["4"])
    assert openrlhf.completion_of("4", "") == "4"
    with pytest.raises(IndexError):
        openrlhf.reward_func(["p4"], ["p"], [])
    assert caplog.text.count("a completion has no reward") == 3


# -------------------------------------------------------------------------------------------------------------- slime


def sample(text: str, label: str = "4", **metadata: Any) -> Any:
    return SimpleNamespace(prompt="2 + 2?", response=text, label=label, metadata=metadata)


async def test_slime_gets_a_number_a_sample_or_one_each_of_a_group(environment: pytest.MonkeyPatch) -> None:
    assert await slime.group_reward(None, [sample("4"), sample("five"), sample("42")]) == [2.0, 2.0, 1.0]
    with pytest.raises(ConfigError, match=ALONE.format("slime")):
        await slime.reward(None, sample("4"))
    environment.setenv("REWARD_SCORERS", "graded")
    assert await slime.reward(None, sample("4", level=1), evaluation=True) == 2.0
    with pytest.raises(NoRewardError):
        await slime.group_reward(None, [sample("4"), sample("raise")])


# ----------------------------------------------------------------------------------------------------------- ms-swift


def swift_rows(*texts: str, prompts: str) -> dict[str, Any]:
    return {
        "messages": [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ],
        "prompt_id": [f"prompt_{p}" for p in prompts],
        "request_id": ["r"] * len(texts),
        "label": ["4"] * len(texts),
        "trainer_state": SimpleNamespace(global_step=7),
    }


async def test_swifts_rows_are_scored_in_whole_groups(environment: pytest.MonkeyPatch) -> None:
    settings, texts = Settings.read({}), ["4", "five", "six", "4"]
    rewards = await ms_swift.rewards_of(settings, 2, texts, **swift_rows(*texts, prompts="ppqq"))
    assert rewards == [2.0, 1.0, 1.0, 2.0]  # 2 · graded + rank
    rewards = await ms_swift.rewards_of(settings, 2, texts, **swift_rows(*texts, prompts="pppp"))  # two groups of 2
    assert rewards == [2.0, 1.0, 1.0, 2.0]
    with pytest.raises(ConfigError, match=r"this rank has groups of \[1, 2\] rows of 2: choose per_device_train"):
        await ms_swift.rewards_of(settings, 2, texts[:3], **swift_rows(*texts[:3], prompts="pqq"))


async def test_swift_gets_an_exception_and_never_a_none_that_it_would_sum_to_zero(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("REWARD_SCORERS", "graded")
    texts = ["4", "raise"]
    with pytest.raises(NoRewardError):
        await ms_swift.rewards_of(Settings.read({}), 2, texts, **swift_rows(*texts, prompts="pp"))


# ----------------------------------------------------------------------------------------------------------- NeMo-Gym


def gym_body(text: str) -> dict[str, Any]:
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
    return {
        "responses_create_params": {"input": [{"role": "user", "content": "2 + 2?"}]},
        "response": {"output": [{"type": "reasoning", "summary": []}, message]},
        "label": "4",
    }


async def test_nemo_gym_gets_a_reward_of_the_last_message(environment: pytest.MonkeyPatch) -> None:
    settings = Settings.read({"scorers": "graded"})
    assert await nemo_gym.verified(gym_body("4"), settings) == (2.0, {"graded": 1.0})
    with pytest.raises(NoRewardError) as caught:
        await nemo_gym.verified(gym_body("raise"), settings)
    assert nemo_gym.status_of(caught.value) == 503
    with pytest.raises(ConfigError, match=ALONE.format("NeMo-Gym")) as refused:
        await nemo_gym.verified(gym_body("4"), Settings.read({}))
    assert nemo_gym.status_of(refused.value) == 422


# ---------------------------------------------------------------------------------------------------------- verifiers


class TaskData(BaseModel):
    prompt: str = "2 + 2?"
    image: str | None = None


class Question(TaskData):
    label: str = "4"


class Trace:
    """What the adapter uses of verifiers' own."""

    def __init__(self, last_reply: str):
        self.last_reply = last_reply
        self.recorded: dict[str, float] = {}

    def record_reward(self, name: str, value: float, weight: float = 1.0) -> None:
        self.recorded[name] = value

    record_metric = record_reward


async def test_a_trace_and_an_episode_of_verifiers_get_rewards_or_fail(environment: pytest.MonkeyPatch) -> None:
    traces = [Trace("4"), Trace("five")]
    await verifiers.score_episode(SimpleNamespace(data=Question()), SimpleNamespace(traces=traces))
    assert [trace.recorded for trace in traces] == [
        {"reward": 2.0, "graded": 1.0, "rank": 0.0},
        {"reward": 1.0, "graded": 0.0, "rank": 1.0},
    ]
    traces = [Trace("4"), Trace("raise")]
    with pytest.raises(NoRewardError):
        await verifiers.score_episode(SimpleNamespace(data=Question()), SimpleNamespace(traces=traces))
    assert traces[0].recorded == {}
    environment.setenv("REWARD_SCORERS", "graded")
    assert await verifiers.trace_reward(Question(), trace := Trace("4")) == 2.0
    assert trace.recorded == {"graded": 1.0}


async def rubric(*texts: str) -> tuple[list[float], list[Any]]:
    """The rewards, and what each rollout's state has as its error."""
    states: list[dict[str, Any]] = [{} for _ in texts]
    prompts = [[{"role": "user", "content": "2 + 2?"}]] * len(texts)
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    infos = [{"label": "4"} for _ in texts]
    rewards = await verifiers.rubric_group_reward(prompts, completions, ["4"] * len(texts), states, infos)
    return rewards, [state.get("error") for state in states]


async def test_a_rollout_without_a_reward_is_marked_and_moves_no_baseline_of_a_rubric(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("REWARD_SCORERS", "graded")
    rewards, errors = await rubric("4", "raise", "5", "4")
    assert rewards == [2.0, pytest.approx(4 / 3), 0.0, 2.0]  # the mean of 2, 0 and 2
    assert [type(error) for error in errors] == [type(None), NoRewardError, type(None), type(None)]
    with pytest.raises(NoRewardError):
        await rubric("raise", "raise")


@pytest.mark.parametrize(
    ("name", "value"), [("REWARD_ENDPOINT", ""), ("REWARD_COLUMNS", "answer=nothing"), ("REWARD_SCORERS", "nobody")]
)
async def test_wrong_settings_mark_a_rollout_too_since_a_rubric_goes_on_with_zero(
    name: str, value: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(name, value)
    states: list[dict[str, Any]] = [{}, {}, {}]
    with pytest.raises(ConfigError):
        await verifiers.rubric_reward("p", "a", "4", states[0], {})
    with pytest.raises(ConfigError):
        await verifiers.rubric_group_reward(["p"] * 2, ["a"] * 2, ["4"] * 2, states[1:], [{}] * 2)
    assert [type(state["error"]) for state in states] == [ConfigError] * 3


# ----------------------------------------------------------------------------------------------------------- bad input


async def test_a_wrong_port_is_one_error_for_all_calls_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    calls = [verl_call(f"127.0.0.1:{port}", connect_timeout_s=1) for _ in range(8)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(answer) for answer in answers} == {UnavailableError}
    assert f"no reward service answers at 127.0.0.1:{port}" in str(answers[0])
    assert time.monotonic() - began < 6  # and not 8 times one second


async def test_an_expired_token_is_named(tmp_path: Path) -> None:
    (tokens := tmp_path / "tokens").write_text("new\n")
    (mine := tmp_path / "mine").write_text("old\n")
    config = {"scorers": [{"type": "length", "name": "length", "max": 3}], "tokens_file": str(tokens)}
    with launch_server(config, listen="127.0.0.1:0") as server:
        with pytest.raises(CredentialsError, match="the token is not one of this server's"):
            await verl_call(server.endpoint, scorers="length", token_file=str(mine))
        mine.write_text("new\n")
        assert (await verl_call(server.endpoint, scorers="length", token_file=str(mine)))["score"] == 1.0


async def test_an_unknown_scorer_or_weight_is_named_with_those_of_the_server(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"scorers names \['grade'\], and the server at .* has \['graded', 'rank'\]"):
        await verl_call(endpoint, scorers="grade")
    with pytest.raises(ConfigError, match=r"weights names \['x'\]"):
        await verl_call(endpoint, weights="x=1")


async def test_a_group_scorer_under_a_per_sample_trainer_names_the_ways_out(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"scorers \['rank'\] " + ALONE.format("verl") + ".*REWARD_SCORERS"):
        await verl_call(endpoint, scorers="graded,rank")


def test_a_forked_child_of_a_process_that_is_connected_connects_itself(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("REWARD_SCORERS", "graded")
    code = (
        "import os, sys\nfrom reward_server.adapters.openrlhf import reward_func\n"
        "assert reward_func(['p4'], ['p'], ['4'])['rewards'] == 2.0\n"
        "if not (child := os.fork()):\n    os._exit(int(reward_func(['p4'], ['p'], ['4'])['rewards']))\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    run = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), timeout=60, check=False)
    assert run.returncode == 2
