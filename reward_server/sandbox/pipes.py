"""The pipes of several processes at once: what is written to them, what comes from them, and a wait for either.

Owns the selector and what is still to be written. Knows nothing of what travels there.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable

PIECE = 1 << 16


class Pipes:
    """File descriptors that do not block, each with a handler. They belong to whoever brought them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._unwritten: dict[int, bytearray] = {}
        self._ending: set[int] = set()

    def on_readable(self, fd: int, handler: Callable[[], object]) -> None:
        """Calls the handler whenever there is something to read, an end of file included, until `forget`."""
        self._selector.register(fd, selectors.EVENT_READ, handler)

    def feed(self, fd: int, data: bytes, end_of_file: bool = False) -> None:
        """Writes this as far as the reader takes it, and the rest while `wait` waits."""
        self._unwritten.setdefault(fd, bytearray()).extend(data)
        if end_of_file:
            self._ending.add(fd)
        if fd not in self._selector.get_map():
            self._selector.register(fd, selectors.EVENT_WRITE, lambda: self._write(fd))
        self._write(fd)

    def is_written(self, fd: int) -> bool:
        return not self._unwritten.get(fd)

    def forget(self, fd: int) -> None:
        """Before a descriptor is closed. Harmless where it is not known."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)
        self._unwritten.pop(fd, None)
        self._ending.discard(fd)

    def wait(self, timeout_s: float) -> None:
        """Calls the handlers of whatever happens first."""
        for key, _ in self._selector.select(max(timeout_s, 0.0)):
            if key.fd in self._selector.get_map():  # another event may have ended it
                key.data()

    def _write(self, fd: int) -> None:
        data = self._unwritten[fd]
        try:
            written = os.write(fd, bytes(data[:PIECE])) if data else 0
        except BlockingIOError:
            return
        except BrokenPipeError:  # the reader does not read all of it, and need not
            written = len(data)
        del data[:written]
        if not data:
            self._selector.unregister(fd)
            if fd in self._ending:
                self._ending.discard(fd)
                _end_of_file(fd)


def read(fd: int) -> bytes | None:
    """What is there, at most a piece: empty at the end of the file, None if nothing is there yet."""
    try:
        return os.read(fd, PIECE)
    except BlockingIOError:
        return None


def _end_of_file(fd: int) -> None:
    """Puts another file in the pipe's place: the number belongs to somebody else, who will close it."""
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)
