"""OpenRLHF (0.11): `reward_func` for `--reward.remote_url FILE.py`, where FILE.py is this file.

Owns the translation of its lists. Settings come from the environment alone. Read from OpenRLHF 0.11.2:
`utils/agent.py` (SingleTurnAgentExecutor), `trainer/ppo_utils/samples_generator.py`.

OpenRLHF logs an exception of `reward_func` as information and goes on with the reward None, for which its trainer has
no use: it ends with "reward_model_group is required". So the reason is logged here, as an error.
"""

from __future__ import annotations

import logging
from typing import Any

from reward_server.adapters.service import Row, Service
from reward_server.adapters.settings import Settings
from reward_server.errors import ConfigError

log = logging.getLogger("reward_server.adapters")


def reward_func(queries: list[str], prompts: list[str], labels: list[Any]) -> dict[str, Any]:
    """The reward of one query, which is the prompt and the completion as one text; the label is a column."""
    try:
        return _reward(queries, prompts, labels)
    except Exception:
        log.exception("a completion has no reward")
        raise


def _reward(queries: list[str], prompts: list[str], labels: list[Any]) -> dict[str, Any]:
    if len(queries) != 1:
        raise ConfigError(f"OpenRLHF passed {len(queries)} queries at once, and this adapter takes one, as 0.11 sends")
    settings = Settings.read({})
    service = Service.of(settings, "OpenRLHF")
    text = completion_of(queries[0], prompts[0], settings.strip)
    reward = service.reward_now(Row(prompts[0], text, service.columns({"label": labels[0]})))
    return {"rewards": reward.total, "scores": reward.total, "extra_logs": dict(reward.scores)}


def completion_of(query: str, prompt: str, strip: tuple[str, ...] = ()) -> str:
    """What follows the prompt, without the special tokens. Raises ConfigError if the prompt is not in the query."""
    start = query.find(prompt)
    if start < 0:
        raise ConfigError(
            f"the query does not contain the prompt, so that the completion is not known: {query[:80]!r}; the "
            "tokenizer changes the text of prompts, and this adapter cannot be used with it"
        )
    text = query[start + len(prompt) :]
    for token in strip:
        text = text.replace(token, "")
    return text
