"""The cache's disk: one SQLite file that several servers of a machine may share, and that may fail without harm.

Owns the file, the two threads that touch it and every trouble with it: what cannot be read is not there, what cannot be
written is not kept, and each kind of trouble is logged once. Knows not what keys and values mean.

    store = DiskStore(path, max_bytes)
    await store.open()
    found = await store.get(keys)      those that are there; {} if the disk is late
    store.put({key: value})            returns at once: a thread writes it
    await store.close()                when what was put is written, or a grace has passed

The journal is a write-ahead log: readers and a writer do not wait for one another, and a process that is killed in the
midst of writing leaves what was committed before. It needs shared memory, so the file must be on the machine's own
disk, not on a network's. Each value has a checksum, since SQLite has none and a flipped bit would be a score.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

log = logging.getLogger("reward_server")

T = TypeVar("T")

# The format is in the table's name: a server of another release shares the file and nothing in it.
_TABLE = "reward_scores_1"
_CREATE = (
    f"CREATE TABLE IF NOT EXISTS {_TABLE} (age INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)"
)
_PUT = f"INSERT OR REPLACE INTO {_TABLE} (key, value) VALUES (?, ?)"
_DELETE_OLDEST = f"DELETE FROM {_TABLE} WHERE age <= (SELECT age FROM {_TABLE} ORDER BY age LIMIT 1 OFFSET ?)"

_CHECKSUM_BYTES = 8
_KEYS_A_QUERY = 500
_LATE_S = 2.0  # for a disk that hangs; what is asked for while it does is not there, at once
_BUSY_S = 2.0  # how long a writer waits for the writer of another server
_OPEN_S = 5.0
_CLOSE_GRACE_S = 3.0
_MOST_PENDING_BYTES = 32 << 20
_LONGEST_LOG_BYTES = 16 << 20


class DiskStore:
    """Values by key on disk, at most about `max_bytes` of them; beyond it the oldest leave."""

    def __init__(self, path: Path, max_bytes: int):
        self.path = path
        self._max_bytes = max_bytes
        self._reader = _Hand("cache reader")
        self._writer = _Hand("cache writer")
        self._reading: sqlite3.Connection | None = None
        self._writing: sqlite3.Connection | None = None
        self._late: Future[dict[bytes, bytes]] | None = None
        self._is_open = False
        self._lock = threading.Lock()
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self._flushing = False
        self._told: set[str] = set()
        self.written = 0
        """Values on disk by this server."""
        self.lost = 0
        """Values that could not be written, or came faster than the disk takes them."""
        self.troubles = 0
        """Times that the disk could not be read or written, or was late."""

    async def open(self) -> None:
        """Opens the file, or makes it and its folder. If that fails, it says so and the store stays empty."""
        self._is_open = True
        self._writer.start()
        self._reader.start()
        try:
            self._writing = await self._writer.do(self._connect, _OPEN_S)
            self._reading = await self._reader.do(self._connect, _OPEN_S)
        except (sqlite3.Error, OSError) as error:
            self._reading = None
            self._trouble("opened", error, "move it away or name another; until then only this server's memory is used")

    async def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that have one."""
        if self._reading is None or (self._late is not None and not self._late.done()):
            return {}
        self._late = None
        try:
            return await self._reader.do(lambda: self._get(keys), _LATE_S, on_late=self._note_late)
        except (sqlite3.Error, OSError) as error:
            self._trouble("read", error, "such scores are computed again")
            return {}

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Values to be written."""
        size = sum(len(key) + len(value) for key, value in values.items())
        with self._lock:
            if self._reading is None or self._pending_bytes + size > _MOST_PENDING_BYTES:
                self.lost += len(values)
                return
            self._pending |= values
            self._pending_bytes += size
            if self._flushing:
                return
            self._flushing = True
        self._writer.put(self._flush)

    async def close(self) -> None:
        """Waits for what was put, within a grace, and lets go of the file."""
        if not self._is_open:
            return
        self._is_open = False
        for hand, connection in ((self._writer, self._writing), (self._reader, self._reading)):
            with contextlib.suppress(sqlite3.Error, OSError):
                await hand.do(connection.close if connection else _nothing, _CLOSE_GRACE_S)
            hand.stop()
        self._reading = self._writing = None

    # ------------------------------------------------------------------------------------------------- in the threads

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(mode=0o600)  # who can write to it decides the scores
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        connection.text_factory = bytes  # a damaged value may be of any type
        try:
            _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))
            connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the newest values, not the file
            connection.execute(f"PRAGMA journal_size_limit = {_LONGEST_LOG_BYTES}")
            connection.execute("PRAGMA mmap_size = 0")  # a bad disk is then an error, not a SIGBUS
            _patiently(lambda: connection.execute(_CREATE))
        except BaseException:
            connection.close()
            raise
        return connection

    def _get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        assert self._reading is not None
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _KEYS_A_QUERY):
            some = keys[start : start + _KEYS_A_QUERY]
            places = ",".join("?" * len(some))
            query = f"SELECT key, value FROM {_TABLE} WHERE key IN ({places})"
            for key, stored in self._reading.execute(query, some):
                value = stored[_CHECKSUM_BYTES:] if isinstance(stored, bytes) else b""
                if stored == _checksum(key, value) + value:
                    found[key] = value
                else:
                    self._trouble("read", ValueError("a value is damaged"), "such scores are computed again")
        return found

    def _flush(self) -> None:
        with self._lock:
            batch, self._pending, self._pending_bytes, self._flushing = self._pending, {}, 0, False
        try:
            self._write(batch)
        except (sqlite3.Error, OSError) as error:
            self.lost += len(batch)
            self._trouble("written", error, "scores are kept in memory only while that lasts")
        else:
            self.written += len(batch)

    def _write(self, batch: Mapping[bytes, bytes]) -> None:
        assert self._writing is not None
        self._writing.execute("BEGIN IMMEDIATE")
        try:
            if self._used_bytes() > self._max_bytes:
                # Twice what comes, so that it shrinks, and never so much at once that others wait for it.
                self._writing.execute(_DELETE_OLDEST, (2 * len(batch) + 100,))
            self._writing.executemany(_PUT, [(key, _checksum(key, value) + value) for key, value in batch.items()])
            self._writing.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite rolls back by itself where the disk is full
                self._writing.execute("ROLLBACK")
            raise

    def _used_bytes(self) -> int:
        assert self._writing is not None
        pages, free, size = (
            self._writing.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    # ------------------------------------------------------------------------------------------------------- troubles

    def _note_late(self, reading: Future[dict[bytes, bytes]]) -> None:
        self._late = reading  # until it is back nobody else waits for that thread

    def _trouble(self, what: str, error: BaseException, way_out: str) -> None:
        self.troubles += 1
        if what not in self._told:
            self._told.add(what)
            reason = str(error) or type(error).__name__
            log.warning("the cache's file %s cannot be %s (%s): %s", self.path, what, reason, way_out)


class _Hand:
    """A thread that does one thing after another. A daemon: a disk that hangs keeps no process from ending."""

    def __init__(self, name: str):
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.start = self._thread.start

    def put(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def stop(self) -> None:
        self._jobs.put(None)

    async def do(
        self, function: Callable[[], T], timeout_s: float, on_late: Callable[[Future[T]], None] | None = None
    ) -> T:
        """What the function returns or raises there. Raises TimeoutError if that takes longer."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self.put(job)
        ours = asyncio.wrap_future(future)
        ours.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be nobody's any more
        await asyncio.wait({ours}, timeout=timeout_s)
        if ours.done():
            return ours.result()
        if on_late is not None:
            on_late(future)
        raise TimeoutError(f"no answer within {timeout_s:g} s")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(key + value, digest_size=_CHECKSUM_BYTES).digest()


def _patiently(function: Callable[[], object]) -> None:
    """Again while another server sets the file up: SQLite refuses some of that at once, whatever its time-out."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            function()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _nothing() -> None:
    pass
