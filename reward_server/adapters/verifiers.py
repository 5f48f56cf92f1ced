"""verifiers (0.1 to 0.4): rewards of a task's trace and of an episode (0.4), and functions for a Rubric (before).

Owns the translation of traces and rollout states. Read from verifiers 0.4.0: `v1/task.py`, `v1/env.py`, `v1/trace.py`,
and 0.1.14: `rubrics/rubric.py`.

    [env.taskset.task.rewards.remote]                       0.4, one completion
    fn = "reward_server.adapters.verifiers:trace_reward"
    await score_episode(task, episode)                      0.4, in an Env's `finalize`: its traces are a group
    rubric = vf.Rubric(funcs=[rubric_group_reward])         before 0.4; rubric_reward for one completion

A completion without a reward raises in 0.4, which marks the trace or the episode as failed. A Rubric turns an exception
into 0.0, so the rollout gets `state["error"]`, by which trainers leave it out, and in a group the mean of the others,
which moves no baseline.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reward_server.adapters.service import NoRewardError, Reward, Row, Service, total_of
from reward_server.adapters.settings import Settings
from reward_server.types import Content


async def trace_reward(task: Any, trace: Any) -> float:
    """0.4: the reward of one trace, with each scorer's score as a metric.

    `task` is its TaskData; the fields that a taskset's own class adds are columns.
    """
    service = _service()
    reward = await service.reward(_row_of_trace(service, task, trace))
    _record_scores(trace, reward)
    return reward.total


async def score_episode(task: Any, episode: Any) -> None:
    """0.4: scores the traces of an episode as one group and records `reward` on each; for an Env's `finalize`.

    `task` is the Task. Raises NoRewardError, which fails the episode, before anything is recorded.
    """
    service = _service()
    rewards = await service.group_rewards([_row_of_trace(service, task.data, trace) for trace in episode.traces])
    totals = [total_of(reward) for reward in rewards]
    for trace, reward, total in zip(episode.traces, rewards, totals, strict=True):
        trace.record_reward("reward", total)
        _record_scores(trace, reward)


async def rubric_reward(prompt: Any, completion: Any, answer: Any, state: Any, info: Any) -> float:
    """Before 0.4: the reward of one rollout. `answer` and the keys of `info` are columns."""
    with _marked([state]):
        service = _service()
        return (await service.reward(_row_of_rollout(service, prompt, completion, answer, info))).total


async def rubric_group_reward(
    prompts: Sequence[Any], completions: Sequence[Any], answers: Sequence[Any], states: Sequence[Any], infos: Any
) -> list[float]:
    """Before 0.4: the rewards of all rollouts of a prompt."""
    with _marked(states):
        service = _service()
        rows = [_row_of_rollout(service, *values) for values in zip(prompts, completions, answers, infos, strict=True)]
        rewards = await service.group_rewards(rows)
        totals = [each.total for each in rewards if isinstance(each, Reward)] or [total_of(rewards[0])]
    for state, reward in zip(states, rewards, strict=True):
        if isinstance(reward, NoRewardError):
            state["error"] = reward
    return [each.total if isinstance(each, Reward) else statistics.fmean(totals) for each in rewards]


@contextlib.contextmanager
def _marked(states: Sequence[Any]) -> Iterator[None]:
    """Marks the rollouts with the error that is raised, since a Rubric goes on with 0.0."""
    try:
        yield
    except Exception as error:
        for state in states:
            state["error"] = error
        raise


def _service() -> Service:
    return Service.of(Settings.read({}), "verifiers")


def _row_of_trace(service: Service, data: Any, trace: Any) -> Row:
    fields = data.model_dump(mode="json")
    base: Any = next(kind for kind in type(data).__mro__ if kind.__name__ == "TaskData")
    keys = {key: value for key, value in fields.items() if key not in base.model_fields}
    return Row(fields.get("prompt") or "", trace.last_reply, service.columns(keys))


def _record_scores(trace: Any, reward: Reward | NoRewardError) -> None:
    for name, value in reward.scores.items() if isinstance(reward, Reward) else ():
        if not math.isnan(value):
            trace.record_metric(name, value)


def _row_of_rollout(service: Service, prompt: Any, completion: Any, answer: Any, info: Any) -> Row:
    keys = {"answer": answer, **(info if isinstance(info, Mapping) else {})}
    return Row(_content(prompt), _content(completion), service.columns(keys))


def _content(content: Any) -> Content:
    """Text, or messages as plain mappings; verifiers may have them as pydantic models."""
    if isinstance(content, str):
        return content
    return [each if isinstance(each, Mapping) else each.model_dump(mode="json") for each in content]
