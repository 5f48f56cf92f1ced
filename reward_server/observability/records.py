"""Records of the groups that were scored, as JSON lines or Parquet parts, in a bounded amount of disk space.

Owns the sampling, the thread that writes, and the form of a record, which docs/records.md documents. Knows nothing of
gRPC or scorers; `record_lines` and `record_parts` own the files. Records hold prompts and completions, so that only
their owner may read them (mode 0600).

    records = Records(config, note)       raises ConfigError
    records.offer(group, scores, request_bytes)       never waits, never raises
    records.close()

A group that cannot be written (the disk is full or slower than the server) is counted and logged once, and no call
waits for it or fails. `note(outcome, groups)` counts each outcome: "written", "dropped" (the thread is behind) and
"failed".
"""

from __future__ import annotations

import datetime
import functools
import logging
import queue
import random
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from reward_server.config import RecordsConfig
from reward_server.observability.record_lines import RecordLines
from reward_server.observability.record_parts import SCHEMA_VERSION, RecordParts
from reward_server.types import Completion, Group, GroupScores, ScorerScores

log = logging.getLogger("reward_server")

# The most that may wait for the disk, in bytes of requests.
_MOST_WAITING_BYTES = 64 << 20
_CLOSE_GRACE_S = 5.0


class Records:
    """Writes a sample of the groups to disk, in a thread of its own."""

    def __init__(self, config: RecordsConfig, note: Callable[[str, int], None]):
        """Opens the file. Raises ConfigError if it cannot be written."""
        self._sample = config.sample
        self._note = note
        self._sink = sink_of(config)
        self._queue: queue.SimpleQueue[tuple[Group, GroupScores, int, float] | None] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._write_all, name="records", daemon=True)
        self._thread.start()

    def offer(self, group: Group, scores: GroupScores, request_bytes: int) -> None:
        """Records a group if it is in the sample and the disk keeps up."""
        if not is_sampled(group, self._sample):
            return
        with self._lock:
            if self._waiting_bytes and self._waiting_bytes + request_bytes > _MOST_WAITING_BYTES:
                self._lost("dropped", "the disk is slower than the server")
                return
            self._waiting_bytes += request_bytes
        self._queue.put((group, scores, request_bytes, datetime.datetime.now(datetime.UTC).timestamp()))

    def close(self, grace_s: float = _CLOSE_GRACE_S) -> None:
        """Writes the groups that wait, for at most so many seconds."""
        self._queue.put(None)
        self._thread.join(grace_s)
        if self._thread.is_alive():
            return
        self._try(self._sink.close, groups=0)

    def _write_all(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=self._sink.due_in_s)
            except queue.Empty:
                self._try(self._sink.close_if_due, groups=0)
                continue
            if item is None:
                return
            group, scores, request_bytes, at = item
            self._try(functools.partial(self._write, group, scores, at), groups=1)
            with self._lock:
                self._waiting_bytes -= request_bytes

    def _write(self, group: Group, scores: GroupScores, at: float) -> None:
        self._sink.write(record_of(group, scores, at))

    def _try(self, write: Callable[[], None], groups: int) -> None:
        """Runs a write of so many groups and counts its outcome, also for groups that waited in the sink."""
        before = self._sink.waiting + groups
        try:
            write()
            if done := before - self._sink.waiting:
                self._note("written", done)
        except (OSError, ValueError, TypeError) as error:
            self._lost("failed", str(error), before - self._sink.waiting)

    def _lost(self, outcome: str, why: str, groups: int = 1) -> None:
        self._note(outcome, groups)
        if outcome not in self._said:  # only once, since every group may fail
            self._said.add(outcome)
            log.error("records: a group was not written to %s (%s); more are counted, not logged", self._sink, why)


class Sink(Protocol):
    """Files that records are written to.

    `due_in_s` are the seconds until `close_if_due` must be called, None for never. `waiting` is the number of groups
    that were written to the sink and are not on the disk yet.
    """

    waiting: int

    @property
    def due_in_s(self) -> float | None: ...

    def write(self, record: Mapping[str, Any]) -> None: ...
    def close_if_due(self) -> None: ...
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
    return zlib.crc32(f"{group.run_id}\0{group.group_id}".encode("utf-8", "backslashreplace")) < sample * 2**32


def record_of(group: Group, scores: GroupScores, at: float) -> dict[str, Any]:
    """The record of a group that was scored at `at`, in seconds since the epoch."""
    return {
        "schema": SCHEMA_VERSION,
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
    """The content, and what differs between the completions of the group."""
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
    if scorer.extra:
        described["extra"] = {name: list(values) for name, values in scorer.extra.items()}
    return described
