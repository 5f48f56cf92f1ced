"""TRL's asynchronous rollout worker as far as it runs without vLLM: the method that scores a group."""

from __future__ import annotations

import asyncio
from typing import Any


def scored_by_trl(rewards: list[Any], prompts: list[str], completions: list[str], size: int) -> dict[str, list[float]]:
    """Advantages and rewards that `_AsyncRolloutLoop` makes of a group, of which `size` completions were asked for.

    To be run in a spawned process, as TRL runs it.
    """
    from accelerate import PartialState  # noqa: PLC0415 - these load all of TRL
    from trl.experimental.async_grpo import async_rollout_worker as worker  # noqa: PLC0415
    from trl.trainer.utils import get_callable_name  # noqa: PLC0415

    PartialState(cpu=True)  # without which TRL's child does not log
    loop: Any = object.__new__(worker._AsyncRolloutLoop)
    loop.reward_funcs, loop.reward_func_names = rewards, [get_callable_name(reward) for reward in rewards]
    loop._env_reward_types = []
    count = len(completions)
    row = [worker.TrainingSequence([1, 2], [0, 1], [0.0, -1.0], "r")]
    group = worker.RolloutGroup(
        prompts=prompts,
        reward_kwargs={"target": ["a"] * size},
        completions=completions,
        completions_ids=[[1]] * count,
        completions_sequences=[row] * count,
        tool_call_counts=[0] * count,
        tool_failure_counts=[0] * count,
        model_version=0,
        group_id=0,
        env_rewards=[],
        rollout_rewards=[],
    )
    samples = asyncio.run(loop._score_group(group))
    names = ["reward", *(f"rewards/{name}" for name in loop.reward_func_names)]
    columns = {name: [sample.metrics[name] for sample in samples] for name in names}
    return {"advantage": [sample.advantage for sample in samples], **columns}
