"""The memory of the cache keeps its bound in bytes."""

from __future__ import annotations

import tracemalloc

from reward_server.cache.memory_store import MemoryStore


def test_memory_keeps_its_bound_and_drops_what_was_not_used_for_longest() -> None:
    memory = MemoryStore(max_bytes=3 * 210)
    for key in (b"aaaaa", b"bbbbb", b"ccccc"):
        memory.put(key, b"value")
    assert memory.get(b"aaaaa") == b"value"
    memory.put(b"ddddd", b"value")
    assert memory.get(b"bbbbb") is None
    assert memory.get(b"aaaaa") == memory.get(b"ddddd") == b"value"
    assert (len(memory), memory.bytes, memory.evicted) == (3, 630, 1)
    memory.put(b"eeeee", b"x" * 1000)
    assert memory.get(b"eeeee") is None
    memory.put(b"aaaaa", b"other")
    assert (memory.get(b"aaaaa"), memory.bytes) == (b"other", 630)


def test_what_memory_says_it_takes_is_not_less_than_what_it_takes() -> None:
    tracemalloc.start()
    try:
        memory = MemoryStore(max_bytes=64 << 20)
        for index in range(20_000):
            memory.put(index.to_bytes(48), f'[[[1,{index},""]],{{}},{{}}]'.encode())
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= memory.bytes <= 1.5 * taken
