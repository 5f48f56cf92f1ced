"""verl (0.9): `compute_score` for `reward.custom_reward_function`, and `RemoteRewardManager`, which sees groups.

Owns the translation of verl's arguments and batch items. Read from verl 0.9.1: `trainer/ppo/reward.py`,
`experimental/reward_loop/reward_manager/naive.py`.

A completion without a reward raises NoRewardError, which ends verl's worker: verl has no mark for a missing reward.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from reward_server.adapters.service import Row, Service
from reward_server.adapters.settings import Settings
from reward_server.errors import ConfigError

# What verl adds to extra_info and to the arguments by itself.
_VERLS = frozenset({"num_turns", "rollout_reward_scores"})
_PROMPT, _GROUP, _SIZE = "__reward_prompt", "__reward_group", "__reward_group_size"


async def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    **settings: Any,
) -> dict[str, float]:
    """The reward as `score`, with each scorer's score beside it for verl's log.

    `settings` are verl's `reward_kwargs`. The keys of `extra_info`, data_source and ground_truth are columns. A row
    whose `split` is not "train" is one of validation: it is scored alone, since verl fills validation batches up with
    rows that come twice.
    """
    read = Settings.read(settings)
    info = {key: value for key, value in (extra_info or {}).items() if key not in _VERLS}
    if info.get("split", "train") != "train":
        scorers = read.validation_scorers or read.scorers
        read = dataclasses.replace(read, scorers=scorers, group_key=None, index_key=None)
        info[_GROUP] = None
    service = Service.of(read, "verl")
    reward = await service.reward(_row(service, read, info, solution_str, data_source, ground_truth))
    return {**reward.scores, "score": reward.total}


def _row(
    service: Service, settings: Settings, info: dict[str, Any], text: str, data_source: Any, ground_truth: Any
) -> Row:
    prompt, group, size = (info.pop(key, None) for key in (_PROMPT, _GROUP, _SIZE))
    keys = {"data_source": data_source, "ground_truth": ground_truth, **info}
    if settings.group_key is not None:
        group, size = _of(keys, settings.group_key, "group_key"), settings.group_size
        if size is None:
            raise ConfigError("group_key names the groups, and group_size is not given: set it to rollout.n")
    return Row(
        prompt=_of(keys, settings.prompt_key, "prompt_key") if settings.prompt_key is not None else prompt or "",
        completion=text,
        columns=service.columns(keys),
        group_id="" if group is None else str(group),
        group_size=1 if group is None else settings.group_size or size or 1,
        index=None if settings.index_key is None else _index(keys, settings),
    )


def _index(keys: dict[str, Any], settings: Settings) -> int:
    position = _of(keys, settings.index_key or "", "index_key")
    try:
        return int(position)
    except (TypeError, ValueError) as error:
        most = (settings.group_size or 1) - 1
        raise ConfigError(
            f"index_key is {settings.index_key!r}, which holds {position!r:.80} and not a position from 0 to {most}"
        ) from error


def _of(keys: dict[str, Any], key: str, setting: str) -> Any:
    if key not in keys:
        raise ConfigError(
            f"{setting} is {key!r}, and verl passed {sorted(keys)}: put it into the data set's extra_info"
        )
    return keys[key]


def _reward_manager() -> type:
    import numpy as np  # noqa: PLC0415 - verl is loaded by now
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager  # noqa: PLC0415

    class RemoteRewardManager(NaiveRewardManager):
        """verl's own manager, which calls the function above and tells it prompt, group (`uid`) and size (`n`) too.

        The settings are the `reward_kwargs` of `custom_reward_function`, whose path need not be set.
        """

        def __init__(self, config: Any, tokenizer: Any, *_: Any, **others: Any):
            settings = dict(config.reward.get("custom_reward_function", {}).get("reward_kwargs") or {})
            others["compute_score"] = functools.partial(compute_score, **settings)
            super().__init__(config, tokenizer, **others)

        async def run_single(self, data: Any) -> dict[str, Any]:
            item = data[-1:]
            fields = item.non_tensor_batch
            told = {
                **fields["extra_info"][0],
                _PROMPT: list(fields["raw_prompt"][0]) if "raw_prompt" in fields else None,
                _GROUP: fields["uid"][0] if "uid" in fields else None,
                _SIZE: self.config.actor_rollout_ref.rollout.n,
            }
            fields["extra_info"] = np.array([told], dtype=object)
            result: dict[str, Any] = await super().run_single(item)
            return result

    return RemoteRewardManager


def __getattr__(name: str) -> Any:
    """Makes RemoteRewardManager when verl asks for it, since its base class is verl's."""
    if name == "RemoteRewardManager":
        globals()[name] = _reward_manager()
        return globals()[name]
    raise AttributeError(name)
