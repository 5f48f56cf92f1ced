"""A herd: 64 ranks send 100 groups each at once. Are all scored, and does each rank get its share on the way?

    python tests/benchmarks/herd.py [--ranks 64] [--groups 100]

Real clients, a real server, and a function in two worker processes; once with room for all, once with room for 1,024
completions, beyond which groups are pushed back and come again. "share" is how many groups of the slowest and of the
fastest rank are among the first half of the answers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))

from reward_server.client import RewardClient  # noqa: E402
from reward_server.launch import launch_server  # noqa: E402
from tests.support.builders import make_group  # noqa: E402

OBEYS = {"type": "function", "name": "obeys", "function": f"{ROOT}/tests/support/misbehaving.py:obeys"}


def herd(room: int, ranks: int, groups: int) -> str:
    """One line of the table."""
    config = {"scorers": [OBEYS], "workers": 2, "limits": {"max_queued_completions": room}}
    order: list[int] = []
    with launch_server(config) as server:
        clients = [RewardClient(server.endpoint, timeout_s=300) for _ in range(ranks)]
        began = time.perf_counter()
        pending = []
        for index in range(groups):
            for rank, client in enumerate(clients):
                group = make_group(["a", "bb", "ccc", "dddd"], run_id="herd", group_id=f"{rank}/{index}")
                pending.append(client.submit(group))
                pending[-1].add_done_callback(lambda _, rank=rank: order.append(rank))
        right = sum([s.value for s in p.result().scorers[0].scores] == [1.0, 2.0, 3.0, 4.0] for p in pending)
        took_s = time.perf_counter() - began
        retries = sum(client.counts.retries for client in clients)
        for client in clients:
            client.close()
    first = Counter(order[: ranks * groups // 2])
    shares = [first[rank] for rank in range(ranks)]
    scored = f"{right} of {ranks * groups}"
    return f"{room:>8}{scored:>16}{took_s:>10.1f}{retries:>14}{f'{min(shares)} to {max(shares)}':>14}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--groups", type=int, default=100)
    args = parser.parse_args()
    print(f"{'room':>8}{'scored right':>16}{'seconds':>10}{'pushed back':>14}{'share':>14}")
    for room in (65_536, 1_024):
        print(herd(room, args.ranks, args.groups), flush=True)


if __name__ == "__main__":
    main()
