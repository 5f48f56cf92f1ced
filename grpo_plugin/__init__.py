"""TRL's GRPO with rewards from a service."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RemoteGRPOConfig", "RemoteGRPOTrainer"]

if TYPE_CHECKING:
    from grpo_plugin.config import RemoteGRPOConfig
    from grpo_plugin.trainer.remote import RemoteGRPOTrainer

_HOMES = {"RemoteGRPOConfig": "grpo_plugin.config", "RemoteGRPOTrainer": "grpo_plugin.trainer.remote"}


def __getattr__(name: str) -> Any:
    """Imports torch and trl only when the trainer is asked for, so that `grpo --help` answers at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
