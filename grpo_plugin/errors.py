"""What the shell commands say when they are used wrongly.

Owns one error. Errors of the reward service are `reward_server.errors`.
"""

from __future__ import annotations


class UsageError(ValueError):
    """Input that cannot be used; the message names the value and the way out, and needs no traceback."""
