"""The replicas of a deployment, as one of them reaches all: itself too, once it runs.

Owns the messages to them and the count of those that should answer. Knows nothing of what the messages are about.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from reward_server.execution.threads import in_thread

_ANSWER_TIMEOUT_S = 5.0


class Siblings:
    """The replicas of one deployment."""

    def __init__(self, application: str, deployment: str):
        self._application = application
        self._deployment = deployment

    async def ask(self, *command: str) -> list[Any]:
        """The answers of all that run, or the errors in their place."""
        handle = serve.get_deployment_handle(self._deployment, self._application)
        try:
            asked = handle.broadcast("agree", *command)
            return await asked.results_async(timeout_s=_ANSWER_TIMEOUT_S, return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError) as error:
            return [error]

    async def running(self) -> int | None:
        """How many of them run; None while one is being updated, since it then hears nothing."""
        states = await in_thread(self._states)
        return None if states.get("UPDATING") else states.get("RUNNING", 0)

    def _states(self) -> dict[Any, int]:
        application = serve.status().applications.get(self._application)
        deployment = application and application.deployments.get(self._deployment)
        return dict(deployment.replica_states) if deployment else {}
