"""A TCP proxy that breaks a connection as networks do: cut in the middle, or silent with nobody told.

Owns a listening socket, and two threads a connection. Knows nothing of what passes through.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

_CHUNK = 1 << 16


class Proxy:
    """Passes bytes between its own port and a server's until it is told to misbehave."""

    def __init__(self, endpoint: str):
        host, _, port = endpoint.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._cut_after: int | None = None
        self._open = threading.Event()
        self._open.set()
        self._closing = False
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, count: int) -> None:
        """The connection that carries an answer is reset once `count` more bytes of the server's have passed."""
        with self._lock:
            self._cut_after = count

    def go_silent(self) -> None:
        """From now on nothing passes in either direction, and no connection is closed."""
        self._open.clear()

    def speak(self) -> None:
        """Everything passes again, what was held too."""
        self._open.set()

    def close(self) -> None:
        self._closing = True
        self._open.set()
        self._listener.close()
        for each in self._sockets:
            _reset(each)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closing:
                ours, _ = self._listener.accept()
                try:
                    theirs = socket.create_connection(self._server)
                except OSError:
                    ours.close()
                    continue
                self._sockets += [ours, theirs]
                for source, sink, answers in ((ours, theirs, False), (theirs, ours, True)):
                    threading.Thread(target=self._pass_on, args=(source, sink, answers), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                self._open.wait()
                part = self._until_cut(chunk) if answers else chunk
                sink.sendall(part)
                if len(part) < len(chunk):
                    break
        for each in (source, sink):
            _reset(each)

    def _until_cut(self, chunk: bytes) -> bytes:
        with self._lock:
            if self._cut_after is None:
                return chunk
            if len(chunk) <= self._cut_after:
                self._cut_after -= len(chunk)
                return chunk
            part, self._cut_after = chunk[: self._cut_after], None
            self.cuts += 1
            return part


def _reset(each: socket.socket) -> None:
    """Closes with an RST, as a peer that crashed does."""
    with contextlib.suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        each.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        each.close()
