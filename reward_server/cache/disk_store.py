"""The cache's disk store: one SQLite file that several servers of a machine may share, and whose failure is harmless.

Owns the file, the two threads that use it and all its errors: a value that cannot be read is a miss, a value that
cannot be written is not kept, and each kind of error is logged once. Knows nothing of what keys and values mean.

    store = DiskStore(path, max_bytes)
    await store.open()
    found = await store.get(keys)      the values that are stored; {} if the disk does not answer in time
    store.put({key: value})            returns at once; a thread writes the value
    await store.close()                returns when everything is written, or after a grace period

The journal is a write-ahead log: readers and a writer do not wait for one another, and a process that is killed while
it writes leaves what was committed before. The log needs shared memory, so the file must be on a local disk, not on a
network file system. Each value has a checksum, since SQLite has none and a flipped bit would change a score.
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

# The table's name holds the format's version: servers of different releases share the file, but no table.
_TABLE = "reward_scores_1"
_CREATE = (
    f"CREATE TABLE IF NOT EXISTS {_TABLE} (age INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)"
)
_PUT = f"INSERT OR REPLACE INTO {_TABLE} (key, value) VALUES (?, ?)"
_DELETE_OLDEST = f"DELETE FROM {_TABLE} WHERE age <= (SELECT age FROM {_TABLE} ORDER BY age LIMIT 1 OFFSET ?)"

_CHECKSUM_BYTES = 8
_KEYS_A_QUERY = 500
_READ_TIMEOUT_S = 2.0  # for a disk that hangs; until the read returns, every further read is a miss at once
_BUSY_TIMEOUT_S = 2.0  # how long a writer waits for the writer of another server
_OPEN_S = 5.0
_CLOSE_GRACE_S = 3.0
_MAX_PENDING_BYTES = 32 << 20
_MAX_LOG_BYTES = 16 << 20


class DiskStore:
    """Values by key on disk, about `max_bytes` at most. Beyond that, the oldest values are deleted."""

    def __init__(self, path: Path, max_bytes: int):
        self.path = path
        self._max_bytes = max_bytes
        self._reader = _JobThread("cache reader")
        self._writer = _JobThread("cache writer")
        self._read_connection: sqlite3.Connection | None = None
        self._write_connection: sqlite3.Connection | None = None
        self._late_read: Future[dict[bytes, bytes]] | None = None
        self._is_open = False
        self._lock = threading.Lock()
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self._flushing = False
        self._logged: set[str] = set()
        self.written = 0
        """How many values this server has written."""
        self.lost = 0
        """How many values could not be written, or were dropped since the disk was too slow."""
        self.errors = 0
        """How often the disk could not be read or written, or did not answer in time."""

    async def open(self) -> None:
        """Opens the file; creates it and its folder if needed. If that fails, logs it and the store stays empty."""
        self._is_open = True
        self._writer.start()
        self._reader.start()
        try:
            self._write_connection = await self._writer.do(self._connect, _OPEN_S)
            self._read_connection = await self._reader.do(self._connect, _OPEN_S)
        except (sqlite3.Error, OSError) as error:
            self._read_connection = None
            self._note_failure("opened", error, "move it away or set another path; until then only memory is used")

    async def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are stored."""
        if self._read_connection is None or (self._late_read is not None and not self._late_read.done()):
            return {}
        self._late_read = None
        try:
            return await self._reader.do(lambda: self._get(keys), _READ_TIMEOUT_S, on_late=self._note_late)
        except (sqlite3.Error, OSError) as error:
            self._note_failure("read", error, "such scores are computed again")
            return {}

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Queues values to be written."""
        size = sum(len(key) + len(value) for key, value in values.items())
        with self._lock:
            if self._read_connection is None or self._pending_bytes + size > _MAX_PENDING_BYTES:
                self.lost += len(values)
                return
            self._pending |= values
            self._pending_bytes += size
            if self._flushing:
                return
            self._flushing = True
        self._writer.put(self._flush)

    async def close(self) -> None:
        """Waits until the queued values are written, for a grace period at most, and closes the file."""
        if not self._is_open:
            return
        self._is_open = False
        for thread, connection in ((self._writer, self._write_connection), (self._reader, self._read_connection)):
            with contextlib.suppress(sqlite3.Error, OSError):
                await thread.do(connection.close if connection else _nothing, _CLOSE_GRACE_S)
            thread.stop()
        self._read_connection = self._write_connection = None

    # ------------------------------------------------------------------------------------------------- in the threads

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(mode=0o600)  # whoever can write to it decides the scores
        connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.text_factory = bytes  # a damaged value may have any type
        try:
            _retry_while_locked(lambda: connection.execute("PRAGMA journal_mode = WAL"))
            connection.execute("PRAGMA synchronous = NORMAL")  # a power failure may lose the newest values only
            connection.execute(f"PRAGMA journal_size_limit = {_MAX_LOG_BYTES}")
            connection.execute("PRAGMA mmap_size = 0")  # then a bad disk is an error, not a SIGBUS
            _retry_while_locked(lambda: connection.execute(_CREATE))
        except BaseException:
            connection.close()
            raise
        return connection

    def _get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        assert self._read_connection is not None
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _KEYS_A_QUERY):
            some = keys[start : start + _KEYS_A_QUERY]
            marks = ",".join("?" * len(some))
            query = f"SELECT key, value FROM {_TABLE} WHERE key IN ({marks})"
            for key, stored in self._read_connection.execute(query, some):
                value = stored[_CHECKSUM_BYTES:] if isinstance(stored, bytes) else b""
                if stored == _checksum(key, value) + value:
                    found[key] = value
                else:
                    self._note_failure("read", ValueError("a value is damaged"), "such scores are computed again")
        return found

    def _flush(self) -> None:
        with self._lock:
            batch, self._pending, self._pending_bytes, self._flushing = self._pending, {}, 0, False
        try:
            self._write(batch)
        except (sqlite3.Error, OSError) as error:
            self.lost += len(batch)
            self._note_failure("written", error, "until that is mended, scores are kept in memory only")
        else:
            self.written += len(batch)

    def _write(self, batch: Mapping[bytes, bytes]) -> None:
        assert self._write_connection is not None
        self._write_connection.execute("BEGIN IMMEDIATE")
        try:
            if self._used_bytes() > self._max_bytes:
                # Twice as many as are written, so that the file shrinks, and few enough that other servers do not wait.
                self._write_connection.execute(_DELETE_OLDEST, (2 * len(batch) + 100,))
            self._write_connection.executemany(
                _PUT, [(key, _checksum(key, value) + value) for key, value in batch.items()]
            )
            self._write_connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite rolls back by itself if the disk is full
                self._write_connection.execute("ROLLBACK")
            raise

    def _used_bytes(self) -> int:
        assert self._write_connection is not None
        pages, free, size = (
            self._write_connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    # --------------------------------------------------------------------------------------------------------- errors

    def _note_late(self, reading: Future[dict[bytes, bytes]]) -> None:
        self._late_read = reading  # until it returns, nobody else waits for that thread

    def _note_failure(self, what: str, error: BaseException, way_out: str) -> None:
        self.errors += 1
        if what not in self._logged:
            self._logged.add(what)
            reason = str(error) or type(error).__name__
            log.warning("the cache's file %s cannot be %s (%s): %s", self.path, what, reason, way_out)


class _JobThread:
    """A thread that runs one job after another. It is a daemon, so that a disk that hangs cannot block the exit."""

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
        """Returns or raises what the function does in the thread. Raises TimeoutError after `timeout_s`."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self.put(job)
        ours = asyncio.wrap_future(future)
        ours.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait for it any more
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


def _retry_while_locked(function: Callable[[], object]) -> None:
    """Retries while another server sets up the file: SQLite refuses some statements at once, whatever its timeout."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
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
