"""The life of a server that this process has launched: it ends with `stop()`, a `with` block, or this process.

Owns who may stop a server and that it is stopped at exit. Knows nothing of how one is started.
"""

from __future__ import annotations

import abc
import atexit
import os
from typing import Self


class OwnedServer(abc.ABC):
    """A server of the process that launched it."""

    def __init__(self) -> None:
        self._owner_pid = os.getpid()
        atexit.register(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    @abc.abstractmethod
    def endpoint(self) -> str:
        """The address for a client: `unix:path` or `host:port`."""

    @property
    @abc.abstractmethod
    def pid(self) -> int:
        """The process ID of the server."""

    @abc.abstractmethod
    def poll(self) -> int | None:
        """The exit code; None while the server runs. It is negative for a signal, as in `subprocess`."""

    def stop(self, grace_s: float = 10.0) -> int:
        """Drains the server, ends it at once after the grace, and returns its exit code. Calling it twice is harmless.

        In a forked child of the process that launched the server this does nothing, since the server is not the
        child's.
        """
        if os.getpid() != self._owner_pid:
            return 0
        atexit.unregister(self.stop)
        return self._stop(grace_s)

    @abc.abstractmethod
    def _stop(self, grace_s: float) -> int: ...
