"""Records of the groups that were scored, as JSON lines or Parquet parts, in a bounded amount of disk space.

Owns the sampling and the thread that writes. Knows nothing of gRPC or scorers; `record_form` owns what a record holds,
`record_lines` and `record_parts` the files. Records hold prompts and completions, so that only their owner may read
them (mode 0600).

    records = Records(config, note)       raises ConfigError
    records.offer(group, scores, request_bytes)       never waits, never raises
    records.close()

The thread gathers groups and writes them together, a few times a second: one that woke for each group would take the
interpreter's lock from the server's event loop each time, which costs more than the writing.

A group that cannot be written (the disk is full or slower than the server) is counted and logged once, and no call
waits for it or fails. `note(outcome, groups)` counts each outcome: "written", "dropped" (the thread is behind) and
"failed".
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from reward_server.config import RecordsConfig
from reward_server.observability.record_form import Training
from reward_server.observability.record_lines import RecordLines
from reward_server.observability.record_parts import RecordParts
from reward_server.types import Group, GroupScores

log = logging.getLogger("reward_server")

# The most that may wait for the disk, in bytes of requests.
_MOST_WAITING_BYTES = 64 << 20
# Groups are gathered for so long, or until so many bytes wait. A server that is killed loses those that it gathers.
_GATHER_S = 0.2
_GATHER_BYTES = _MOST_WAITING_BYTES // 4
_CLOSE_GRACE_S = 5.0


_Item = tuple[Any, int]  # what the sink makes of a group, and the bytes of its request


class Records:
    """Writes a sample of the groups to disk, in a thread of its own."""

    def __init__(self, config: RecordsConfig, note: Callable[[str, int], None]):
        """Opens the file. Raises ConfigError if it cannot be written."""
        self._sample = config.sample
        self._note = note
        self._sink = sink_of(config)
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._gathered = threading.Event()
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._write_all, name="records", daemon=True)
        self._thread.start()

    def offer(
        self,
        group: Group,
        scores: GroupScores,
        request_bytes: int,
        training: Training | None = None,
    ) -> None:
        """Records a group if it is in the sample and the disk keeps up. `training` has G values under each name."""
        if not is_sampled(group, self._sample):
            return
        if not self._has_room(request_bytes):
            self._lost("dropped", "the disk is slower than the server")
            return
        try:
            # At once, and in the caller's thread: kept until later, a group's many objects would cost more.
            encoded = self._sink.encoded(group, scores, time.time(), training)
        except (ValueError, TypeError, RecursionError) as error:
            self._release(request_bytes)
            self._lost("failed", str(error))
        else:
            self._queue.put((encoded, request_bytes))

    def _has_room(self, request_bytes: int) -> bool:
        with self._lock:
            if self._waiting_bytes and self._waiting_bytes + request_bytes > _MOST_WAITING_BYTES:
                return False
            self._waiting_bytes += request_bytes
            if self._waiting_bytes >= _GATHER_BYTES:
                self._gathered.set()
        return True

    def _release(self, request_bytes: int) -> None:
        with self._lock:
            self._waiting_bytes -= request_bytes

    def close(self, grace_s: float = _CLOSE_GRACE_S) -> None:
        """Writes the groups that wait, for at most so many seconds."""
        self._queue.put(None)
        self._gathered.set()
        self._thread.join(grace_s)
        if self._thread.is_alive():
            return
        self._try(self._sink.close, groups=0)

    def _write_all(self) -> None:
        more = True
        while more:
            items, more = self._gather()
            self._try(functools.partial(self._sink.write, [encoded for encoded, _ in items]), groups=len(items))
            self._release(sum(request_bytes for _, request_bytes in items))

    def _gather(self) -> tuple[list[_Item], bool]:
        """The groups of the next moments, none if the sink is due before one comes; and whether more may come."""
        items: list[_Item] = []
        with contextlib.suppress(queue.Empty):
            item = self._queue.get(timeout=self._sink.due_in_s)
            if item is not None:
                self._gathered.wait(_GATHER_S)
                self._gathered.clear()
            while item is not None:
                items.append(item)
                item = self._queue.get_nowait()
            return items, False
        return items, True

    def _try(self, write: Callable[[], None], groups: int) -> None:
        """Runs a write of so many groups and counts their outcomes, also of groups that waited in the sink."""
        pending, written = self._sink.waiting + groups, self._sink.written
        why = ""
        try:
            write()
        except (OSError, ValueError, TypeError) as error:
            why = str(error)
        if done := self._sink.written - written:
            self._note("written", done)
        if lost := pending - done - self._sink.waiting:
            self._lost("failed", why, lost)

    def _lost(self, outcome: str, why: str, groups: int = 1) -> None:
        self._note(outcome, groups)
        if outcome not in self._said:  # only once, since every group may fail
            self._said.add(outcome)
            log.error("records: a group was not written to %s (%s); more are counted, not logged", self._sink, why)


def records_in(folder: Path, sample: float) -> Records:
    """Records as Parquet parts in a folder, with the defaults of a configuration. Raises ConfigError."""
    config = RecordsConfig.model_validate({"path": folder, "format": "parquet", "sample": sample})
    return Records(config, lambda outcome, groups: None)


class Sink(Protocol):
    """Files that records are written to: `sink.write([sink.encoded(group, scores, at, training)])`.

    `due_in_s` are the seconds until `write` must be called again, with or without records; None for never. `written`
    counts the groups that are on the disk, `waiting` those that are on their way there.
    """

    written: int

    @property
    def waiting(self) -> int: ...

    @property
    def due_in_s(self) -> float | None: ...

    def encoded(self, group: Group, scores: GroupScores, at: float, training: Training | None) -> Any: ...
    def write(self, encoded: Sequence[Any]) -> None: ...
    def close(self) -> None: ...


def sink_of(config: RecordsConfig) -> Sink:
    """The files of a configuration. Raises ConfigError if they cannot be written."""
    if config.format == "jsonl":
        return RecordLines(config.path, config.max_bytes, config.keep)
    return RecordParts(config.path, config.part_groups, config.part_s, config.max_bytes * config.keep)


def is_sampled(group: Group, sample: float) -> bool:
    """Whether a group is in the sample. Its id decides, so that replicas and retries agree."""
    if sample >= 1.0:
        return True
    if not group.group_id:
        return random.random() < sample
    name = f"{group.run_id}\0{group.group_id}".encode("utf-8", "backslashreplace")
    # Not a CRC: those of names that differ in their last digits alone share their first bits.
    return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest()) < sample * 2**32
