"""NeMo-Gym (0.4 to 0.7): `RewardResourcesServer`, a resources server whose `verify` asks a reward server.

Owns the translation of a Responses API exchange, and the HTTP status of what has no reward. Read from nemo-gym 0.4.0:
`base_resources_server.py`.

A completion without a reward is an HTTP error: 422 for a mistake in data or settings, 503 for everything that another
try may mend. There is no response with a made-up reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reward_server.adapters.service import Row, Service
from reward_server.adapters.settings import Settings
from reward_server.errors import ConfigError, CredentialsError, InvalidGroupError, RewardServerError, WireVersionError
from reward_server.types import Content

_CALLERS_FAULT = (ConfigError, CredentialsError, InvalidGroupError, WireVersionError)
_NOT_COLUMNS = frozenset({"responses_create_params", "response"})


async def verified(body: Mapping[str, Any], settings: Settings) -> tuple[float, dict[str, float]]:
    """The reward of a verify request as JSON, and each scorer's score. The request's other fields are columns."""
    service = Service.of(settings, "NeMo-Gym")
    keys = {key: value for key, value in body.items() if key not in _NOT_COLUMNS}
    reward = await service.reward(
        Row(_messages(body["responses_create_params"]["input"]), _text(body["response"]), service.columns(keys))
    )
    return reward.total, dict(reward.scores)


def status_of(error: RewardServerError) -> int:
    """The HTTP status of an error."""
    return 422 if isinstance(error, _CALLERS_FAULT) else 503


def _messages(given: str | Sequence[Mapping[str, Any]]) -> Content:
    """The input as messages with role and content: reasoning items and calls of tools have neither, and stay out."""
    if isinstance(given, str):
        return given
    return [{"role": item["role"], "content": _content(item["content"])} for item in given if "role" in item]


def _content(content: Any) -> Any:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _text(response: Mapping[str, Any]) -> str:
    """What the model says in the end: the text of its last message."""
    messages = [item for item in response["output"] if item.get("type") == "message"]
    return _content(messages[-1]["content"]) if messages else ""


def _server() -> type:
    from fastapi import HTTPException  # noqa: PLC0415 - NeMo-Gym is loaded by now
    from nemo_gym.base_resources_server import (  # noqa: PLC0415
        BaseResourcesServerConfig,
        BaseVerifyRequest,
        BaseVerifyResponse,
        SimpleResourcesServer,
    )
    from pydantic import ConfigDict, Field  # noqa: PLC0415

    class RewardConfig(BaseResourcesServerConfig):
        reward: dict[str, Any] = Field(default_factory=dict)

    class VerifyRequest(BaseVerifyRequest):
        model_config = ConfigDict(extra="allow")

    class VerifyResponse(BaseVerifyResponse):
        model_config = ConfigDict(extra="allow")

    class RewardResourcesServer(SimpleResourcesServer):
        """Its configuration's `reward` holds the settings."""

        config: RewardConfig

        async def verify(self, body: VerifyRequest) -> VerifyResponse:
            try:
                reward, scores = await verified(body.model_dump(mode="json"), Settings.read(self.config.reward))
            except RewardServerError as error:
                raise HTTPException(status_of(error), f"{type(error).__name__}: {error}") from error
            return VerifyResponse(**body.model_dump(), reward=reward, reward_scores=scores)

    # FastAPI reads the annotations, which name classes of this function.
    RewardResourcesServer.verify.__annotations__ = {"body": VerifyRequest, "return": VerifyResponse}
    RewardResourcesServer.__annotations__ = {"config": RewardConfig}
    RewardResourcesServer.model_rebuild(force=True, _types_namespace={"RewardConfig": RewardConfig})
    return RewardResourcesServer


def __getattr__(name: str) -> Any:
    """Makes RewardResourcesServer when it is asked for, since its base class is NeMo-Gym's."""
    if name == "RewardResourcesServer":
        globals()[name] = _server()
        return globals()[name]
    raise AttributeError(name)
