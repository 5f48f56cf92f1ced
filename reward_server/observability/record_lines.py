"""Records as JSON lines: an object a group, in a file that is turned over by size and never grows without bound.

Owns the files and the lock that several processes share. What a record holds is `record_form`'s.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from reward_server.errors import ConfigError
from reward_server.observability.record_form import Training, record_of
from reward_server.types import Group, GroupScores

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class RecordLines:
    """`path` and the full ones before it, `path.1` the latest: `keep` files of `max_bytes`, no line cut in two.

    Several processes may write to them: each write holds `path.lock`, and follows if another has turned them over.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int):
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd = -1
        self.written = 0
        try:
            self._lock_fd = os.open(f"{path}.lock", _APPEND, 0o600)
            self._open()
        except OSError as error:
            raise ConfigError(f"records.path: cannot write {path}: {error.strerror}") from error

    due_in_s: float | None = None
    waiting = 0  # every record is on the disk when `write` returns

    def __str__(self) -> str:
        return str(self._path)

    def encoded(self, group: Group, scores: GroupScores, at: float, training: Training | None = None) -> bytes:
        """The record of a group as a line. Raises TypeError or ValueError for what JSON cannot hold."""
        return (json.dumps(record_of(group, scores, at, training)) + "\n").encode()

    def write(self, lines: Sequence[bytes]) -> None:
        """Appends lines. Raises OSError; `written` then counts those that are in the files, and no line is cut."""
        if not lines:
            return
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        try:
            self._write(lines)
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _write(self, lines: Sequence[bytes]) -> None:
        if not self._is_current():
            self._close_file()
            self._open()
        while lines:
            size = os.fstat(self._fd).st_size
            if fitting := self._fitting(lines, size):
                self._append(b"".join(lines[:fitting]), size)
                lines = lines[fitting:]
            else:
                self._turn_over()

    def _fitting(self, lines: Sequence[bytes], size: int) -> int:
        """How many of the lines go into the file; one at least if it is empty."""
        ends = itertools.accumulate(map(len, lines), initial=size)
        fitting = sum(1 for _ in itertools.takewhile(lambda end: end <= self._max_bytes, ends)) - 1
        return max(fitting, 0 if size else 1)

    def _append(self, lines: bytes, size: int) -> None:
        done = 0
        try:
            while done < len(lines):
                done += os.write(self._fd, lines[done:])
        except OSError:
            done = lines.rfind(b"\n", 0, done) + 1
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size + done)
            raise
        finally:
            self.written += lines.count(b"\n", 0, done)

    def close(self) -> None:
        self._close_file()
        os.close(self._lock_fd)

    def _is_current(self) -> bool:
        """Whether the file that is open is still that of the path."""
        with contextlib.suppress(OSError):
            return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        return False

    def _open(self) -> None:
        self._fd = os.open(self._path, _APPEND, 0o600)

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _turn_over(self) -> None:
        self._close_file()
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._numbered(number - 1), self._numbered(number))
        if self._keep == 1:
            self._path.unlink()
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
