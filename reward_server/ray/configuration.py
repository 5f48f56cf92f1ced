"""The configuration of a server as Ray carries it: a deployment's `user_config`.

Owns which keys of it Ray takes the place of. Knows nothing of replicas.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_server.config import ServerConfig, config_from_mapping
from reward_server.errors import ConfigError

log = logging.getLogger("reward_server")

BASE_DIR = "base_dir"
"""The key with the folder of a configuration that was read from a file; relative paths are looked up there."""

# Ray has replicas in the place of processes, a proxy in that of ports, and its own page of metrics.
_RAYS_OWN = ("listen", "processes", "max_connection_age_s", "reflection", "metrics")


def config_of(user_config: Any) -> ServerConfig:
    """The configuration of a replica. Raises ConfigError."""
    mapping = dict(user_config) if isinstance(user_config, Mapping) else user_config
    base_dir = mapping.pop(BASE_DIR, None) if isinstance(mapping, dict) else None
    config = config_from_mapping(mapping, Path(base_dir) if base_dir else None, source="the configuration")
    if config.tls is not None:
        raise ConfigError(
            "tls: Ray Serve's proxy owns the port, and this would encrypt nothing: remove it, and encrypt in front of "
            "the cluster or by Ray's own RAY_USE_TLS"
        )
    if ignored := [name for name in _RAYS_OWN if name in config.model_fields_set]:
        log.warning("%s: Ray Serve has its own, and these are ignored", ", ".join(ignored))
    return config.model_copy(update={"listen": (), "processes": 1, "metrics": None})


def name_of(user_config: Any) -> str:
    """A name for exactly this configuration, by which replicas agree on it before it is loaded."""
    return hashlib.sha256(json.dumps(user_config, sort_keys=True).encode()).hexdigest()[:12]
