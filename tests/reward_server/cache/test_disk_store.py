"""A disk store that is full, damaged, slow or shared costs time and never gives a wrong value."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from reward_server.cache.disk_store import DiskStore


@pytest.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    stores: list[DiskStore] = []

    async def opened(path: Path = tmp_path / "cache.sqlite", max_bytes: int = 1 << 30) -> DiskStore:
        stores.append(DiskStore(path, max_bytes))
        await stores[-1].open()
        return stores[-1]

    yield opened
    for store in stores:
        await store.close()


async def test_what_one_server_stored_another_finds(open_store: Any) -> None:
    one, other = await open_store(), await open_store()
    one.put({b"k": b"v", b"l": b"w"})
    await one.close()  # which waits until it is written
    assert await other.get([b"k", b"l", b"m"]) == {b"k": b"v", b"l": b"w"}
    assert (one.written, one.lost, one.errors) == (2, 0, 0)


async def test_more_keys_than_a_query_takes_are_found(open_store: Any) -> None:
    store = await open_store()
    pairs = {index.to_bytes(48): b"v" for index in range(3000)}
    store.put(pairs)
    await store.close()
    assert await (await open_store()).get(list(pairs)) == pairs


async def test_a_full_store_drops_the_oldest(open_store: Any, tmp_path: Path) -> None:
    for batch in range(30):
        store = await open_store(max_bytes=400_000)
        store.put({b"%d/%d" % (batch, index): b"x" * 1000 for index in range(100)})
        await store.close()
    store = await open_store()
    assert len(await store.get([b"29/%d" % index for index in range(100)])) == 100
    assert not await store.get([b"0/%d" % index for index in range(100)])
    assert (tmp_path / "cache.sqlite").stat().st_size < 800_000


async def test_a_damaged_value_is_a_miss_and_is_mended(
    open_store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store()
    store.put({b"k": b"[1.0]", b"l": b"[2.0]"})
    await store.close()
    with sqlite3.connect(tmp_path / "cache.sqlite") as connection:
        connection.execute("UPDATE reward_scores_1 SET value = replace(value, '1.0', '9.0')")
    connection.close()
    store = await open_store()
    for _ in range(2):
        assert await store.get([b"k", b"l"]) == {b"l": b"[2.0]"}
    assert caplog.text.count("a value is damaged") == 1
    store.put({b"k": b"[1.0]"})
    await store.close()
    assert await (await open_store()).get([b"k"]) == {b"k": b"[1.0]"}


def garbage(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwritten(path: Path) -> None:
    """Every page but the first is noise."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


@pytest.mark.parametrize("damage", [garbage, cut_off, overwritten])
async def test_a_corrupted_store_is_an_empty_one_and_is_logged_once(
    open_store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    store = await open_store()
    pairs = {index.to_bytes(48): b"v" * 100 for index in range(1000)}
    store.put(pairs)
    await store.close()
    damage(tmp_path / "cache.sqlite")
    store = await open_store()
    for key, value in pairs.items():
        assert await store.get([key]) in ({}, {key: value})  # never another's
    store.put(pairs)
    await store.close()
    told = [record for record in caplog.records if "cache's file" in record.message]
    assert 1 <= len(told) <= 2, "reading and writing once each"
    assert str(tmp_path) in told[0].message


async def test_a_disk_that_hangs_is_waited_for_once_and_used_again_when_it_is_back(
    open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reward_server.cache.disk_store._READ_TIMEOUT_S", 0.2)
    store = await open_store()
    store.put({b"k": b"v"})
    back = threading.Event()
    store._reader.put(back.wait)
    assert await store.get([b"k"]) == {}
    began = time.perf_counter()
    assert [await store.get([b"k"]) for _ in range(20)] == [{}] * 20
    assert time.perf_counter() - began < 2
    assert store.errors == 1
    back.set()
    await store._reader.do(lambda: None, 10)  # after all that hung
    assert await store.get([b"k"]) == {b"k": b"v"}


async def test_a_path_that_cannot_be_made_is_logged_and_holds_nothing(
    open_store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    store = await open_store(tmp_path / "file" / "cache.sqlite")
    store.put({b"k": b"v"})
    assert await store.get([b"k"]) == {}
    assert store.lost == 1
    assert "cannot be opened" in caplog.text


async def test_a_writer_who_is_stopped_in_a_transaction_keeps_nobody_from_reading(
    open_store: Any, tmp_path: Path
) -> None:
    store = await open_store()
    store.put({b"k": b"v"})
    await store.close()
    store = await open_store()
    holder = sqlite3.connect(tmp_path / "cache.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        store.put({b"l": b"w"})
        assert await asyncio.wait_for(store.get([b"k"]), 0.4) == {b"k": b"v"}
        await store.close()
        assert (store.lost, store.errors) == (1, 1)
    finally:
        holder.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from reward_server.cache.disk_store import DiskStore

async def main():
    store = DiskStore(Path(sys.argv[1]), 1 << 30)
    await store.open()
    for batch in range(10**9):
        store.put({b"%d/%d" % (batch, index): b"value of %d" % batch * 20 for index in range(200)})
        await asyncio.sleep(0)
        if store.written > 3000:
            print("going", flush=True)

asyncio.run(main())
"""


TOGETHER = """
import asyncio, sys
from pathlib import Path
from reward_server.cache.disk_store import DiskStore

async def main():
    sys.stdin.readline()
    store = DiskStore(Path(sys.argv[1]), 1 << 30)
    await store.open()
    for batch in range(20):
        store.put({b"%d" % (batch * 50 + index): b"value" for index in range(100)})
        await store.get([b"%d" % index for index in range(100)])
    await store.close()
    print(store.errors, store.lost)

asyncio.run(main())
"""


@pytest.mark.slow
def test_servers_that_make_the_file_and_write_to_it_at_once_do_not_meet(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOGETHER, tmp_path / "cache.sqlite"]
    servers = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(4)]
    for server in servers:
        assert server.stdin is not None
        server.stdin.write("go\n")
        server.stdin.flush()
    assert [server.communicate(timeout=60)[0].split() for server in servers] == [["0", "0"]] * 4


def kill_while_writing(path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()


@pytest.mark.slow
async def test_killed_in_the_midst_of_writing_it_holds_what_it_had(open_store: Any, tmp_path: Path) -> None:
    for _ in range(3):
        kill_while_writing(tmp_path / "cache.sqlite")
    store = await open_store()
    found = await store.get([b"%d/%d" % (batch, index) for batch in range(5) for index in range(200)])
    assert len(found) == 1000
    assert all(value == b"value of %d" % int(key.partition(b"/")[0]) * 20 for key, value in found.items())
    store.put({b"k": b"v"})
    await store.close()
    assert (store.written, store.errors) == (1, 0)
    connection = sqlite3.connect(tmp_path / "cache.sqlite")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
