"""The adapters, loaded and called by the trainers' own code where a trainer is installed. None is a requirement."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from reward_server.adapters import openrlhf as openrlhf_adapter
from reward_server.adapters.service import NoRewardError

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[3] / "configs" / "adapters"


class Words:
    """A tokenizer whose tokens are characters."""

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return "".join(chr(int(each)) for each in ids)


async def test_verl_loads_the_function_and_the_manager_whose_samples_meet(endpoint: str) -> None:
    pytest.importorskip("verl")
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from omegaconf import OmegaConf  # noqa: PLC0415
    from tensordict import TensorDict  # noqa: PLC0415
    from verl import DataProto  # noqa: PLC0415
    from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager  # noqa: PLC0415

    kwargs = {
        "endpoint": endpoint,
        "columns": {"answer": "ground_truth"},
        "timeout_s": 30,
        "validation_scorers": ["graded"],
    }
    config = OmegaConf.create(
        {
            "actor_rollout_ref": {"rollout": {"n": 3}},
            "reward": {
                "custom_reward_function": {
                    "path": "pkg://reward_server.adapters.verl",
                    "name": "compute_score",
                    "reward_kwargs": kwargs,
                },
                "reward_manager": {
                    "source": "importlib",
                    "name": "RemoteRewardManager",
                    "module": {"path": "pkg://reward_server.adapters.verl"},
                },
            },
        }
    )
    function = get_custom_reward_fn(config)
    alone = await function(data_source="d", solution_str="4", ground_truth="4", extra_info={}, scorers=["graded"])
    assert alone == {"graded": 1.0, "score": 2.0}

    def item(text: str, split: str = "train") -> DataProto:
        ids = torch.tensor([[ord(character) for character in text]])
        batch = TensorDict({"responses": ids, "attention_mask": torch.ones_like(ids)}, batch_size=1)
        fields = {
            "data_source": "d",
            "reward_model": {"ground_truth": "4"},
            "extra_info": {"index": 1, "split": split},
            "uid": "group 1",
            "raw_prompt": [{"role": "user", "content": "2 + 2?"}],
        }
        arrays = {name: np.empty(1, dtype=object) for name in fields}
        for name, value in fields.items():
            arrays[name][0] = value
        return DataProto(batch=batch, non_tensor_batch=arrays)

    managers = [load_reward_manager(config, Words()) for _ in range(3)]  # a worker each
    texts = ["4", "five", "seven"]
    answers = await asyncio.gather(*(m.run_single(item(text)) for m, text in zip(managers, texts, strict=True)))
    assert [answer["reward_score"] for answer in answers] == [2.0, 1.0, 2.0]  # 2 · graded + rank
    assert (await managers[0].run_single(item("4", "test")))["reward_score"] == 2.0  # validation: alone
    assert answers[0]["reward_extra_info"] == {"graded": 1.0, "rank": 0.0, "score": 2.0}


async def test_openrlhf_loads_the_file_and_turns_an_exception_into_no_reward(environment: pytest.MonkeyPatch) -> None:
    agent = pytest.importorskip("openrlhf.utils.agent")
    environment.setenv("REWARD_SCORERS", "graded")
    executor = agent.SingleTurnAgentExecutor([openrlhf_adapter.__file__])
    [answer] = await executor._fetch_rewards_via_func(["p4"], ["p"], ["4"])
    assert answer == {"rewards": 2.0, "scores": 2.0, "extra_logs": {"graded": 1.0}}
    with pytest.raises(Exception, match="told to raise"):
        await executor._fetch_rewards_via_func(["praise"], ["p"], ["4"])


def test_swift_loads_the_plugin_and_scores_its_samples(environment: pytest.MonkeyPatch) -> None:
    algorithm = pytest.importorskip("swift.rl_core.grpo_algorithm")
    from swift.rewards.orm import orms  # noqa: PLC0415
    from swift.rl_core.data import GRPOSample  # noqa: PLC0415
    from swift.utils import import_external_file  # noqa: PLC0415

    import_external_file(str(CONFIGS / "ms_swift_plugin.py"))
    function = orms["remote"](args=type("Args", (), {"num_generations": 2}))

    def sample(text: str) -> Any:
        messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": text}]
        return GRPOSample(messages=messages, prompt_id="prompt_0", request_id=text, extra={"label": "4"})

    samples = [sample("4"), sample("five")]
    rewards = algorithm.compute_rewards_per_func(samples, [function], [None], device="cpu")
    assert rewards.tolist() == [[2.0], [1.0]]
    with pytest.raises(NoRewardError):
        algorithm.compute_rewards_per_func([sample("4"), sample("raise")], [function], [None], device="cpu")


async def test_slime_loads_both_functions(environment: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("slime.rollout.rm_hub")
    from types import SimpleNamespace  # noqa: PLC0415

    from slime.utils.types import Sample  # noqa: PLC0415

    samples = [Sample(prompt="2 + 2?", response=text, label="4") for text in ("4", "five")]
    args = SimpleNamespace(custom_rm_path="reward_server.adapters.slime.group_reward")
    assert await hub.batched_async_rm(args, samples) == [2.0, 1.0]
    environment.setenv("REWARD_SCORERS", "graded")
    args.custom_rm_path = "reward_server.adapters.slime.reward"
    assert await hub.async_rm(args, samples[0]) == 2.0


async def test_verifiers_plugs_the_function_into_a_task_and_fails_a_trace_without_a_reward(
    environment: pytest.MonkeyPatch,
) -> None:
    vf = pytest.importorskip("verifiers.v1")
    environment.setenv("REWARD_SCORERS", "graded")

    class Data(vf.TaskData):  # type: ignore[misc, name-defined]
        label: str = "4"

    def scored(text: str) -> Any:
        config = vf.TaskConfig(rewards={"remote": {"fn": "reward_server.adapters.verifiers:trace_reward"}})
        task = vf.Task[Data](Data(prompt="2 + 2?"), config)
        trace = vf.Trace.model_construct(task=task.data, root_reply=text, rewards={}, metrics={}, nodes=[])
        return task, trace

    task, trace = scored("4")
    await task.score(trace)
    assert trace.reward == 2.0
    assert trace.rewards["remote"].score == 2.0
    assert trace.metrics == {"graded": 1.0}
    task, trace = scored("raise")
    with pytest.raises(Exception, match="told to raise"):
        await task.score(trace)
    assert trace.rewards == {"remote": None}


async def test_a_rubric_of_the_earlier_verifiers_takes_the_functions(environment: pytest.MonkeyPatch) -> None:
    vf = pytest.importorskip("verifiers")
    if not hasattr(vf, "Rubric"):
        pytest.skip("this is verifiers 0.4 or later")
    from reward_server.adapters import verifiers as adapter  # noqa: PLC0415

    def states(*texts: str) -> list[dict[str, Any]]:
        common = {"prompt": [{"role": "user", "content": "?"}], "answer": "4", "info": {"label": "4"}, "trajectory": []}
        return [{**common, "completion": [{"role": "assistant", "content": text}]} for text in texts]

    rubric = vf.Rubric(funcs=[adapter.rubric_group_reward])
    await rubric.score_group(group := states("4", "five"))
    assert [state["reward"] for state in group] == [2.0, 1.0]
    environment.setenv("REWARD_SCORERS", "graded")
    await rubric.score_group(group := states("4", "raise", "5"))
    assert [state["reward"] for state in group] == [2.0, 1.0, 0.0]
    assert [state["advantage"] for state in group] == [1.0, 0.0, -1.0]
    assert [isinstance(state.get("error"), NoRewardError) for state in group] == [False, True, False]


def test_nemo_gym_serves_verify_with_a_reward_or_an_http_error(endpoint: str) -> None:
    pytest.importorskip("nemo_gym")
    from unittest.mock import MagicMock  # noqa: PLC0415 - of NeMo-Gym's own client, as its tests have it

    from fastapi.testclient import TestClient  # noqa: PLC0415
    from nemo_gym.server_utils import ServerClient  # noqa: PLC0415

    from reward_server.adapters.nemo_gym import RewardResourcesServer  # noqa: PLC0415

    reward = {"endpoint": endpoint, "scorers": ["graded"], "columns": "answer=label"}
    config = RewardResourcesServer.model_fields["config"].annotation(
        host="127.0.0.1", port=1, entrypoint="", name="reward", domain="math", reward=reward
    )
    server = RewardResourcesServer(config=config, server_client=MagicMock(spec=ServerClient))
    client = TestClient(server.setup_webserver())

    def verify(text: str) -> Any:
        content = [{"type": "output_text", "text": text, "annotations": []}]
        message = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": content}
        response = {
            "id": "r", "created_at": 0, "model": "m", "object": "response", "output": [message],
            "parallel_tool_calls": False, "tool_choice": "auto", "tools": [],
        }  # fmt: skip
        body = {"responses_create_params": {"input": "2 + 2?"}, "response": response, "label": "4"}
        return client.post("/verify", json=body)

    assert verify("4").json()["reward"] == 2.0
    assert verify("4").json()["reward_scores"] == {"graded": 1.0}
    assert verify("raise").status_code == 503
