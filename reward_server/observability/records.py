"""What was scored, written down: a JSON object a group, in a file that is turned over and never grows without bound.

Owns the sample, the thread that writes and the files. Knows nothing of gRPC or scorers. The file holds prompts and
completions, so that only its owner may read it (mode 0600).

    records = Records(config, note)       raises ConfigError
    records.offer(group, scores, request_bytes)       never waits, never raises
    records.close()

A group that cannot be written (the disk is full or slower than the server) is counted, said in the log once, and costs
no call anything. `note(outcome, groups)` hears of it: "written", "dropped" (the thread is behind), "failed".
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import queue
import random
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reward_server.config import RecordsConfig
from reward_server.errors import ConfigError
from reward_server.types import Completion, Group, GroupScores, ScorerScores

log = logging.getLogger("reward_server")

# What may wait for the disk, in bytes of requests.
_MOST_WAITING_BYTES = 64 << 20
_CLOSE_GRACE_S = 5.0
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class Records:
    """A sample of the groups, on their way to the disk."""

    def __init__(self, config: RecordsConfig, note: Callable[[str, int], None]):
        """Opens the file. Raises ConfigError if it cannot be written."""
        self._sample = config.sample
        self._note = note
        self._files = _Files(config.path, config.max_bytes, config.keep)
        self._queue: queue.SimpleQueue[tuple[Group, GroupScores, int, float] | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._write_all, name="records", daemon=True)
        self._thread.start()

    def offer(self, group: Group, scores: GroupScores, request_bytes: int) -> None:
        """Takes a group if it is in the sample and the disk keeps up."""
        if not is_sampled(group, self._sample):
            return
        with self._lock:
            if self._waiting_bytes and self._waiting_bytes + request_bytes > _MOST_WAITING_BYTES:
                self._lost("dropped", "the disk is slower than the server")
                return
            self._waiting_bytes += request_bytes
        self._queue.put((group, scores, request_bytes, datetime.datetime.now(datetime.UTC).timestamp()))

    def close(self, grace_s: float = _CLOSE_GRACE_S) -> None:
        """Writes what waits, for so long at most."""
        self._queue.put(None)
        self._thread.join(grace_s)
        if not self._thread.is_alive():
            self._files.close()

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            group, scores, request_bytes, at = item
            try:
                self._files.write((json.dumps(record_of(group, scores, at)) + "\n").encode())
                self._note("written", 1)
            except (OSError, ValueError, TypeError) as error:
                self._lost("failed", str(error))
            with self._lock:
                self._waiting_bytes -= request_bytes

    def _lost(self, outcome: str, why: str) -> None:
        self._note(outcome, 1)
        if outcome not in self._said:  # once, since it would be once a group
            self._said.add(outcome)
            log.error("records: a group was not written to %s (%s); more are counted, not logged", self._files, why)


def is_sampled(group: Group, sample: float) -> bool:
    """Whether a group is in the sample: by its name, so that it is the same on every replica and after a retry."""
    if sample >= 1.0:
        return True
    if not group.group_id:
        return random.random() < sample
    return zlib.crc32(f"{group.run_id}\0{group.group_id}".encode("utf-8", "backslashreplace")) < sample * 2**32


def record_of(group: Group, scores: GroupScores, at: float) -> dict[str, Any]:
    """One line of the file. `at` is in seconds since the epoch."""
    return {
        "time": datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="milliseconds"),
        "run_id": group.run_id,
        "step": group.step,
        "group_id": group.group_id,
        "config_digest": scores.config_digest,
        "prompt": group.prompt,
        "columns": dict(group.columns),
        "completions": [_completion(completion) for completion in group.completions],
        "rewards": scores.rewards(),
        "scorers": {scorer.name: _scorer(scorer) for scorer in scores.scorers},
        "queued_s": scores.queued_s,
        "compute_s": scores.compute_s,
    }


def _completion(completion: Completion) -> dict[str, Any]:
    """The content, and what differs from its siblings'."""
    described: dict[str, Any] = {"content": completion.content}
    if completion.columns:
        described["columns"] = dict(completion.columns)
    if completion.prompt is not None:
        described["prompt"] = completion.prompt
    return described


def _scorer(scorer: ScorerScores) -> dict[str, Any]:
    described: dict[str, Any] = {
        "version": scorer.version,
        "weight": scorer.weight,
        "scores": [score.value for score in scorer.scores],
        "statuses": [score.status.name for score in scorer.scores],
    }
    if any(score.message for score in scorer.scores):
        described["messages"] = [score.message for score in scorer.scores]
    return described


class _Files:
    """`path` and the full ones before it, `path.1` the latest: `keep` files of `max_bytes`, no line cut in two.

    Several processes may write to them: each write holds `path.lock`, and follows if another has turned them over.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int):
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd = -1
        try:
            self._lock_fd = os.open(f"{path}.lock", _APPEND, 0o600)
            self._open()
        except OSError as error:
            raise ConfigError(f"records.path: cannot write {path}: {error.strerror}") from error

    def __str__(self) -> str:
        return str(self._path)

    def write(self, line: bytes) -> None:
        """Appends a line. Raises OSError, and then nothing of it is in the file."""
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        try:
            self._write(line)
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _write(self, line: bytes) -> None:
        if not self._is_current():
            self._close_file()
            self._open()
        size = os.fstat(self._fd).st_size
        if size and size + len(line) > self._max_bytes:
            self._turn_over()
            size = 0
        try:
            written = 0
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise

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
