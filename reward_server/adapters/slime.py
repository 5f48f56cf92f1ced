"""slime: `reward` for `--custom-rm-path`, and `group_reward` with `--group-rm`.

Owns the translation of its samples. Settings come from the environment alone. Read from slime of August 2026:
`slime/rollout/rm_hub/__init__.py`, `slime/utils/types.py`.

A completion without a reward raises NoRewardError, which ends slime's rollout: its rewards are numbers, and the loss
mask of `remove_sample` would still leave one in the group's baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reward_server.adapters.service import Row, Service, total_of
from reward_server.adapters.settings import Settings


async def reward(args: Any, sample: Any, **_: Any) -> float:
    """The reward of one sample. `label` and the keys of its `metadata` are columns."""
    service = _service()
    return (await service.reward(_row(service, sample))).total


async def group_reward(args: Any, samples: Sequence[Any], **_: Any) -> list[float]:
    """The rewards of the samples of one group, in their order."""
    service = _service()
    return [total_of(each) for each in await service.group_rewards([_row(service, sample) for sample in samples])]


def _service() -> Service:
    return Service.of(Settings.read({}), "slime")


def _row(service: Service, sample: Any) -> Row:
    metadata = sample.metadata if isinstance(sample.metadata, Mapping) else {}
    return Row(sample.prompt, sample.response, service.columns({"label": sample.label, **metadata}))
