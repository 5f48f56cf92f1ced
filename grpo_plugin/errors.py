"""The error of the shell commands for input that cannot be used.

Errors of the reward service are in `reward_server.errors`.
"""

from __future__ import annotations


class UsageError(ValueError):
    """Input that cannot be used. The message names the value and the way out; commands show no traceback."""
