"""A herd: 64 ranks send 100 groups each at once. Are all scored, and does each rank get its share on the way?

    python tests/benchmarks/herd.py [--ranks 64] [--groups 100]

Real clients, a real server, and a function in two worker processes, which are busy until all ranks have sent; once with
room for all, once with room for 1,024 completions, beyond which groups are pushed back and come again. Groups go as
the trainer sends them, several in a call ("together"), and each in a call of its own ("alone"). Seconds are those that
all ranks, which are one process here, take to send, and those from the end of the wait to the last answer. "share" is
how many groups of the slowest and of the fastest rank are among the first half of the answers; where groups are pushed
back, it says who came first.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from reward_server.client import RewardClient  # noqa: E402
from reward_server.launch import launch_server  # noqa: E402
from reward_server.types import Group, GroupScores  # noqa: E402
from tests.support.builders import make_group  # noqa: E402

OBEYS = {"type": "function", "name": "obeys", "function": f"{ROOT}/tests/support/misbehaving.py:obeys"}
_WORKERS = 2
_SENDING_S = 12


Send = Callable[[Sequence[RewardClient], Sequence[Sequence[Group]]], Iterator[tuple[int, Future[GroupScores]]]]


def herd(room: int, ranks: int, groups: int, send: Send) -> str:
    """The numbers of one line of the table."""
    config = {"scorers": [OBEYS], "workers": _WORKERS, "limits": {"max_queued_completions": room}}
    order: list[int] = []
    batches = [
        [make_group(["a", "bb", "ccc", "dddd"], run_id="herd", group_id=f"{rank}/{index}") for index in range(groups)]
        for rank in range(ranks)
    ]
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(launch_server(config))
        clients = [stack.enter_context(RewardClient(server.endpoint, timeout_s=300)) for _ in range(ranks + 1)]
        busy = [clients[-1].submit(make_group([f"sleep {_SENDING_S}"], group_id=str(n))) for n in range(_WORKERS)]
        pending = []
        began = time.perf_counter()
        for rank, future in send(clients[:-1], batches):
            future.add_done_callback(lambda _, rank=rank: order.append(rank))
            pending.append(future)
        sending_s = time.perf_counter() - began
        if busy[0].done():
            sys.exit(f"to send took more than {_SENDING_S} s: the shares would say who was first")
        busy[0].result()
        began = time.perf_counter()
        right = sum([s.value for s in p.result().scorers[0].scores] == [1.0, 2.0, 3.0, 4.0] for p in pending)
        scoring_s = time.perf_counter() - began
        retries = sum(client.counts.retries for client in clients)
    first = Counter(order[: ranks * groups // 2])
    shares = [first[rank] for rank in range(ranks)]
    scored = f"{right} of {ranks * groups}"
    return f"{scored:>16}{sending_s:>10.1f}{scoring_s:>10.1f}{retries:>14}{f'{min(shares)} to {max(shares)}':>14}"


def together(
    clients: Sequence[RewardClient], batches: Sequence[Sequence[Group]]
) -> Iterator[tuple[int, Future[GroupScores]]]:
    for rank, (client, groups) in enumerate(zip(clients, batches, strict=True)):
        yield from ((rank, future) for future in client.submit_all(groups))


def alone(
    clients: Sequence[RewardClient], batches: Sequence[Sequence[Group]]
) -> Iterator[tuple[int, Future[GroupScores]]]:
    for groups in zip(*batches, strict=True):
        yield from ((rank, clients[rank].submit(group)) for rank, group in enumerate(groups))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--groups", type=int, default=100)
    args = parser.parse_args()
    print(f"{'room':>8}{'groups go':>11}{'right':>16}{'to send':>10}{'to score':>10}{'pushed back':>14}{'share':>14}")
    for room in (65_536, 1_024):
        for send in (together, alone):
            print(f"{room:>8}{send.__name__:>11}" + herd(room, args.ranks, args.groups, send), flush=True)


if __name__ == "__main__":
    main()
