"""The application builder, by Ray's convention: from the arguments of `serve run` or a Serve file to deployments.

Owns the arguments, the names of the deployments and their defaults; a Serve file overrides the latter by name. Loads no
scorer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application, Deployment

from reward_server.errors import ConfigError
from reward_server.ray.configuration import BASE_DIR, config_of
from reward_server.ray.replica import Replica
from reward_server.ray.split import Part
from reward_server.scorers.registry import explain

DEPLOYMENT = "RewardServer"
"""The deployment that takes the calls."""

# Above what a replica's own admission control takes by default, which tells callers when to return; Ray tells nothing.
_MAX_ONGOING_REQUESTS = 4096

_DEFAULTS: dict[str, Any] = {
    "max_ongoing_requests": _MAX_ONGOING_REQUESTS,
    "graceful_shutdown_timeout_s": 60.0,
    "logging_config": {"enable_access_log": False},  # else two lines a group
}


class Arguments(BaseModel):
    """The arguments of the application."""

    model_config = ConfigDict(extra="forbid")

    config: str | dict[str, Any] = Field(
        {},
        description="A file with the configuration, or the configuration itself. Unset, the deployment's user_config.",
    )
    split: bool = Field(False, description="One deployment a scorer, each with its own replicas and devices.")


def app(args: dict[str, Any]) -> Application:
    """The application. Raises ConfigError."""
    try:
        arguments = Arguments.model_validate(args)
    except ValidationError as error:
        raise ConfigError(explain(error, Arguments, "args")) from error
    user_config = _user_config(arguments.config)
    if not arguments.split:
        if user_config:
            config_of(user_config)  # raises here what replicas would only log
        return _deployment(Replica, DEPLOYMENT, user_config).bind()
    config = config_of(user_config)
    names = [scorer.name for scorer in config.scorers]
    if DEPLOYMENT in names:
        raise ConfigError(f"a scorer cannot be called {DEPLOYMENT!r} with split: the deployment in front is; rename it")
    parts = {name: _deployment(Part, name, user_config).bind(name) for name in names}
    return _deployment(Replica, DEPLOYMENT, user_config).bind(parts)


def _deployment(of: type, name: str, user_config: dict[str, Any]) -> Deployment:
    return serve.deployment(of).options(name=name, user_config=user_config, **_DEFAULTS)


def _user_config(config: str | dict[str, Any]) -> dict[str, Any]:
    """The configuration as Ray carries it to the replicas, which may lie on other machines: as a mapping."""
    if not isinstance(config, str):
        return config
    path = Path(config)
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config: cannot read {config!r} in {Path.cwd()}: {error}") from error
    if not isinstance(mapping, dict):
        raise ConfigError(f"{config} must hold a mapping with the key `scorers`, not {mapping!r:.80}")
    return {BASE_DIR: str(path.resolve().parent), **mapping}
