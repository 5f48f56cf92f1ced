"""What faults cost: for each, what was injected, what was sent again, what was lost or wrong, the longest wait.

    python tests/benchmarks/faults.py [--groups 24]

Every fault of a replica or a connection meets two replicas on loopback while groups of two completions are in
flight through one client. "retried" counts groups sent again after a failure, "hedged" those sent to a second replica
as well; "lost" are groups without an answer, "wrong" those answered with anything but what they are worth, where a
completion whose scorer failed is worth no number. Exits with 1 if anything is lost or wrong. Takes about a minute.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parents[2]))

from reward_server.client import RewardClient
from tests.support.builders import make_group
from tests.support.peers import peer, scores_for
from tests.support.proxy import Proxy
from tests.support.replicas import Load, Replica, lengths
from tests.support.servers import broken, made

DEADLINE_S = 30.0
SLOW = made("slow_length", seconds=0.1)


@dataclass
class Row:
    """What one fault came to."""

    fault: str
    injected: int
    retried: int
    hedged: int
    lost: int
    wrong: int
    longest_s: float


@contextmanager
def replicas(count: int, *scorers: dict[str, Any]) -> Iterator[list[Replica]]:
    started: list[Replica] = []
    try:
        for _ in range(count):
            started.append(Replica({"scorers": list(scorers), "workers": 2}, "127.0.0.1:0"))
        yield started
    finally:
        for replica in started:
            replica.stop()


def measure(
    fault: str, groups: int, endpoints: list[str], inject: Callable[[Load], int], hedge_after_s: float | None = None
) -> Row:
    """Groups in flight, the fault, more groups; what became of them."""
    with RewardClient(endpoints, timeout_s=DEADLINE_S, hedge_after_s=hedge_after_s) as client:
        Load(client, DEADLINE_S).submit(4).finish()  # connected
        load = Load(client, DEADLINE_S).submit(groups // 2)
        time.sleep(0.15)
        injected = inject(load)
        load.submit(groups - groups // 2).finish()
        counts = client.counts
        return Row(
            fault, injected, counts.retries, counts.hedges, len(load.errors()), len(load.wrong(lengths)), load.longest_s
        )


# ----------------------------------------------------------------------------------------------------------- the faults


def killed(groups: int) -> Row:
    with replicas(2, SLOW) as both:
        return measure("replica killed (-9)", groups, [r.endpoint for r in both], lambda _: did(both[0].kill))


def drained(groups: int) -> Row:
    with replicas(2, SLOW) as both:
        stop = lambda: os.kill(both[0].pid, signal.SIGTERM)  # noqa: E731
        return measure("replica drained (SIGTERM)", groups, [r.endpoint for r in both], lambda _: did(stop))


def stopped(groups: int, hedge_after_s: float | None) -> Row:
    name = "replica stopped (SIGSTOP)" + (f", hedge {hedge_after_s:g} s" if hedge_after_s else "")
    with replicas(2, SLOW) as both:
        return measure(name, groups, [r.endpoint for r in both], lambda _: did(both[0].freeze), hedge_after_s)


def all_down(groups: int) -> Row:
    def down_and_back(load: Load) -> int:
        for replica in both:
            replica.kill()
        load.submit(4)
        time.sleep(5.0)
        for replica in both:
            replica.start()
        return 2

    with replicas(2, SLOW) as both:
        return measure("all replicas down for 5 s", groups, [r.endpoint for r in both], down_and_back)


def cut(groups: int) -> Row:
    with replicas(2, SLOW) as both:
        link = Proxy(both[0].endpoint)
        row = measure(
            "connection cut in a response",
            groups,
            [link.endpoint, both[1].endpoint],
            lambda _: did(lambda: link.cut_after(40)),
        )
        link.close()
        return row


def half_open(groups: int) -> Row:
    with replicas(2, SLOW) as both:
        link = Proxy(both[0].endpoint)
        row = measure("connection half-open", groups, [link.endpoint, both[1].endpoint], lambda _: did(link.go_silent))
        link.close()
        return row


def full(groups: int) -> Row:
    refused: list[str] = []

    def answer(request: Any, context: Any) -> Any:
        if request.group_id not in refused and request.group_id.startswith("group"):
            refused.append(request.group_id)
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "200"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        response = scores_for(request, 2)
        for score, completion in zip(response.scorers[0].scores, request.completions, strict=True):
            score.value = len(completion.content.text)
        return response

    with peer(answer) as (endpoint, _):
        row = measure("server full, push-back 0.2 s", groups, [endpoint], lambda _: 0)
    row.injected = len(refused)
    return row


def scorer(name: str, fault: str, groups: int, **options: Any) -> Row:
    """Every third group has a completion that does harm: it is to end without a number, its sibling with its own."""
    with replicas(1, broken(name, **options)) as one:
        with RewardClient(one[0].endpoint, timeout_s=DEADLINE_S) as client:
            client.connect(10)
            began = time.monotonic()
            texts = [["a" * n, "bad" if n % 3 == 0 else "b"] for n in range(groups)]
            pending = [client.submit(make_group(text, group_id=str(n))) for n, text in enumerate(texts)]
            lost = wrong = 0
            for text, future in zip(texts, pending, strict=True):
                if future.exception() is not None:
                    lost += 1
                    continue
                found = [score.value for score in future.result().scorers[0].scores]
                wrong += found != [float(len(text[0])), None if text[1] == "bad" else 1.0]
            longest_s = time.monotonic() - began
            bad = sum(text[1] == "bad" for text in texts)
            return Row(fault, bad, client.counts.retries, client.counts.hedges, lost, wrong, longest_s)


def did(act: Callable[[], None]) -> int:
    act()
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=24)
    groups = parser.parse_args().groups
    faults: list[Callable[[], Row]] = [
        lambda: killed(groups),
        lambda: drained(groups),
        lambda: stopped(groups, 0.5),
        lambda: stopped(groups, None),
        lambda: all_down(groups),
        lambda: cut(groups),
        lambda: half_open(groups),
        lambda: full(groups),
        lambda: scorer("raises", "scorer raises", groups),
        lambda: scorer("nan", "scorer returns NaN", groups),
        lambda: scorer("dies", "scorer's process dies", groups),
        lambda: scorer("hangs", "scorer hangs, limit 0.5 s", groups, timeout_s=0.5),
    ]
    print(f"{'fault':38}{'injected':>9}{'retried':>9}{'hedged':>8}{'lost':>6}{'wrong':>7}{'longest wait':>14}  of")
    failed = False
    for fault in faults:
        row = fault()
        failed |= bool(row.lost or row.wrong)
        print(
            f"{row.fault:38}{row.injected:9}{row.retried:9}{row.hedged:8}{row.lost:6}{row.wrong:7}"
            f"{row.longest_s:12.2f} s  {DEADLINE_S:g} s",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
