"""What a judge may spend in a server's life: calls and tokens. Counts only; knows no prices and waits for nobody.

A call takes its estimated tokens before it is made and is settled by what the engine says that it used, so calls in
flight together pass the limit by no more than their estimates were short. What may have been billed stays spent.
"""

from __future__ import annotations

import logging

log = logging.getLogger("reward_server")


class SpentError(Exception):
    """The next call would pass a limit; the message says which."""


class Budget:
    """Limits of None are none."""

    def __init__(self, name: str, requests: int | None, tokens: int | None):
        self._name = name
        self._most_requests = requests
        self._most_tokens = tokens
        self._was_logged = False
        self.requests = 0
        self.tokens = 0

    def take(self, estimate: int) -> None:
        """Before a call of about `estimate` tokens. Raises SpentError, and then has taken nothing."""
        if self._most_requests is not None and self.requests >= self._most_requests:
            raise self._spent(f"budget_requests = {self._most_requests}")
        if self._most_tokens is not None and self.tokens + estimate > self._most_tokens:
            raise self._spent(
                f"budget_tokens = {self._most_tokens} ({self.tokens} used, the next call about {estimate})"
            )
        self.requests += 1
        self.tokens += estimate

    def settle(self, estimate: int, used: int) -> None:
        """After a call for which `estimate` was taken and which took `used`."""
        self.tokens += used - estimate

    def _spent(self, limit: str) -> SpentError:
        message = f"scorer {self._name!r} has spent its {limit}; raise it and start the server again"
        if not self._was_logged:
            self._was_logged = True
            log.error("%s: until then its scores are FAILED", message)
        return SpentError(message)
