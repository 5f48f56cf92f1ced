"""ms-swift (4.6): `register`, which a file of `--external_plugins` calls, for `--reward_funcs remote`.

Owns the division of a rank's rows into groups, and the translation of its columns. Read from ms-swift 4.6.0:
`rewards/orm.py`, `rl_core/grpo_algorithm.py` (compute_rewards_per_func), `rlhf_trainers/grpo_trainer.py`.

A completion without a reward raises NoRewardError, which ends the run. ms-swift reads None as "not applicable" and sums
the others, and where there are no others the sum is 0.0.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from reward_server.adapters.service import Row, Service, total_of
from reward_server.adapters.settings import Settings
from reward_server.errors import ConfigError

# What ms-swift passes beside the columns of the data set.
_NOT_COLUMNS = frozenset(
    {
        "messages", "prompt_id", "request_id", "finish_reason", "is_truncated", "rollout_infos", "response_token_ids",
        "trainer_state", "trajectory_inputs", "images", "videos", "audios", "objects", "rejected_images", "channel",
        "add_eos", "chat_template_kwargs",
    }
)  # fmt: skip


def register(name: str = "remote", **settings: Any) -> None:
    """Makes `--reward_funcs NAME` the rewards of a server. Raises ConfigError for settings that cannot be used."""
    from swift.rewards.orm import AsyncORM, orms  # noqa: PLC0415 - ms-swift has loaded the file that calls this

    read = Settings.read(settings)

    class RemoteReward(AsyncORM):
        """The weighted sum of the scores of a server."""

        async def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
            return await rewards_of(read, getattr(self.args, "num_generations", None), completions, **columns)

    orms[name] = RemoteReward


async def rewards_of(
    settings: Settings, num_generations: int | None, completions: Sequence[Any], **columns: Any
) -> list[float]:
    """The rewards of a rank's rows, each group scored as a whole."""
    service = Service.of(settings, "ms-swift")
    rows = [_row(service, completions, columns, index) for index in range(len(completions))]
    size = settings.group_size or num_generations
    groups = _groups(columns.get("prompt_id") or [""] * len(rows), size, bool(await service.group_aware()))
    answers = await asyncio.gather(*(service.group_rewards([rows[index] for index in group]) for group in groups))
    return [total_of(reward) for rewards in answers for reward in rewards]


def _groups(prompt_ids: Sequence[str], size: int | None, needs_groups: bool) -> list[list[int]]:
    """The indices of each group: the rows that follow one another with one prompt, `size` of them at most.

    Raises ConfigError if a scorer compares completions and a group is not whole on this rank.
    """
    runs = [list(run) for _, run in itertools.groupby(range(len(prompt_ids)), lambda index: prompt_ids[index])]
    step = size or len(prompt_ids)
    groups = [run[start : start + step] for run in runs for start in range(0, len(run), step)]
    if needs_groups and any(len(group) != size for group in groups):
        raise ConfigError(
            f"a scorer compares the completions of a group, and this rank has groups of {sorted(map(len, groups))} "
            f"rows of {size}: choose per_device_train_batch_size so that num_generations divides a rank's rows, or "
            "leave the scorer out by scorers"
        )
    return groups


def _row(service: Service, completions: Sequence[Any], columns: dict[str, Any], index: int) -> Row:
    messages = columns.get("messages")
    keys = {
        name: values[index]
        for name, values in columns.items()
        if name not in _NOT_COLUMNS and isinstance(values, (list, tuple))
    }
    prompt = "" if messages is None else list(messages[index][:-1])  # the last one is the completion
    step = getattr(columns.get("trainer_state"), "global_step", 0)
    return Row(prompt, completions[index], service.columns(keys), step=step)
