"""The replicas of a deployment, as one of them reaches all: itself too, once it runs.

Owns the messages to them and the count of those that should answer. Knows nothing of what the messages are about.
"""

from __future__ import annotations

import logging
from typing import Any

from ray import serve

from reward_server.execution.threads import in_thread

log = logging.getLogger("reward_server")

_ANSWER_TIMEOUT_S = 5.0


class Siblings:
    """The replicas of one deployment."""

    def __init__(self, application: str, deployment: str):
        self._application = application
        self._deployment = deployment

    async def ask(self, *command: str) -> list[Any]:
        """The answers of all that run, or the errors in their place."""
        try:
            handle = serve.get_deployment_handle(self._deployment, self._application)
            asked = handle.broadcast("agree", *command)
            return await asked.results_async(timeout_s=_ANSWER_TIMEOUT_S, return_exceptions=True)
        except Exception as error:  # no replica runs, or Ray's controller does not answer, which may pass
            return [error]

    async def running(self) -> int | None:
        """How many of them run; None if Ray does not say, and while one is updated, since it then hears nothing."""
        try:
            states = await in_thread(self._states)
        except Exception as error:
            log.warning("Ray does not say which replicas run, and is asked again: %s", error)
            return None
        return None if states.get("UPDATING") else states.get("RUNNING", 0)

    def _states(self) -> dict[Any, int]:
        application = serve.status().applications.get(self._application)
        deployment = application and application.deployments.get(self._deployment)
        return dict(deployment.replica_states) if deployment else {}
