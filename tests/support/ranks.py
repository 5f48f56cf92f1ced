"""Ranks that run side by side: as threads, for what needs no processes, and as processes that talk over gloo."""

from __future__ import annotations

import datetime
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from grpo_plugin.batching.ranks import Ranks

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60


def on_ranks(count: int, act: Callable[[Ranks], Any]) -> list[Any]:
    """What `act` returns on each of `count` ranks, which are threads and exchange tensors for real."""
    held: list[Any] = [None] * count
    barrier = threading.Barrier(count, timeout=20)

    def run(rank: int) -> Any:
        def everyones(value: Any) -> list[Any]:
            held[rank] = value
            barrier.wait()
            found = list(held)
            barrier.wait()
            return found

        def all_to_all(sent: torch.Tensor, sizes: Sequence[int], received_sizes: Sequence[int]) -> torch.Tensor:
            received = [parts[rank] for parts in everyones(sent.split(list(sizes)))]
            assert [len(part) for part in received] == list(received_sizes)
            return torch.cat(received)

        return act(Ranks(rank, count, lambda value: torch.cat(everyones(value)), all_to_all=all_to_all))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def on_gloo(count: int, folder: Path, act: Callable[[Ranks], Any]) -> list[Any]:
    """What `act`, a function of a module, returns on each of `count` processes that talk over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = [folder / f"rank{rank}" for rank in range(count)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, act.__module__, act.__qualname__, str(rank), str(count), str(port), path],
            cwd=ROOT,
        )
        for rank, path in enumerate(results)
    ]
    try:
        codes = [process.wait(DEADLINE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * count
    return [pickle.loads(path.read_bytes()) for path in results]


def _gather(value: torch.Tensor) -> torch.Tensor:
    parts = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, value)
    return torch.cat(parts)


def _main(module: str, name: str, rank: int, count: int, port: int, path: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=count,
        timeout=datetime.timedelta(seconds=DEADLINE_S / 2),
    )
    act = getattr(__import__(module, fromlist=[name]), name)
    path.write_bytes(pickle.dumps(act(Ranks(rank, count, _gather))))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], *(int(value) for value in sys.argv[3:6]), Path(sys.argv[6]))  # type: ignore[arg-type]
