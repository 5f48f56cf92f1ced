"""What a judge may spend in the life of a server: calls and tokens. It only counts: it knows no prices and never waits.

An estimate of a call's tokens is taken before the call, and replaced by the number that the engine reports after it. So
calls in flight together exceed the limit only by the error of their estimates. Calls that may have been billed stay
counted.
"""

from __future__ import annotations

import logging

log = logging.getLogger("reward_server")


class SpentError(Exception):
    """The next call would pass a limit; the message says which."""


class Budget:
    """Counts calls and tokens against their limits; a limit of None is no limit."""

    def __init__(self, name: str, requests: int | None, tokens: int | None):
        self._name = name
        self._most_requests = requests
        self._most_tokens = tokens
        self._was_logged = False
        self.requests = 0
        self.tokens = 0

    def take(self, estimate: int) -> None:
        """Counts a call of about `estimate` tokens before it is made. Raises SpentError, and then counts nothing."""
        if self._most_requests is not None and self.requests >= self._most_requests:
            raise self._spent(f"budget_requests = {self._most_requests}")
        if self._most_tokens is not None and self.tokens + estimate > self._most_tokens:
            raise self._spent(
                f"budget_tokens = {self._most_tokens} ({self.tokens} used, the next call about {estimate})"
            )
        self.requests += 1
        self.tokens += estimate

    def settle(self, estimate: int, used: int) -> None:
        """Replaces the estimate of a call by the tokens that it used."""
        self.tokens += used - estimate

    def _spent(self, limit: str) -> SpentError:
        message = f"scorer {self._name!r} has spent its {limit}; raise it and start the server again"
        if not self._was_logged:
            self._was_logged = True
            log.error("%s: until then its scores are FAILED", message)
        return SpentError(message)
