"""Flows share by cost, whoever came first and whoever has more."""

from __future__ import annotations

from reward_server.execution.fair_shares import FairShares


def taken(shares: FairShares[str], count: int) -> str:
    return " ".join(shares.pop() for _ in range(count))


def test_a_flow_keeps_its_order_and_two_flows_alternate() -> None:
    shares: FairShares[str] = FairShares()
    for item in ("a1", "a2", "a3", "b1", "b2"):
        shares.add((item[0],), item, cost=10)
    assert taken(shares, 5) == "a1 b1 a2 b2 a3"
    assert not shares


def test_shares_are_of_cost_and_not_of_items() -> None:
    shares: FairShares[str] = FairShares()
    for n in range(2):
        shares.add(("long",), f"L{n}", cost=30)
    for n in range(6):
        shares.add(("short",), f"s{n}", cost=10)
    # starts: L at 0, 30; s at 0, 10, 20, 30, 40, 50
    assert taken(shares, 8) == "L0 s0 s1 s2 L1 s3 s4 s5"


def test_runs_share_first_and_then_the_callers_of_a_run() -> None:
    shares: FairShares[str] = FairShares()
    for caller in ("x", "y"):
        for n in range(2):
            shares.add(("big", caller), f"{caller}{n}", cost=1)
    for n in range(4):
        shares.add(("small", "z"), f"z{n}", cost=1)
    assert taken(shares, 8) == "x0 z0 y0 z1 x1 z2 y1 z3"


def test_one_that_sends_when_it_was_answered_does_not_overtake_those_that_wait() -> None:
    shares: FairShares[str] = FairShares()
    for n in range(3):
        shares.add(("a",), f"a{n}", cost=10)
    order = []
    for n in range(3):
        shares.add(("b",), f"b{n}", cost=10)
        order += [shares.pop(), shares.pop()]
    assert sorted(order[:4]) == ["a0", "a1", "b0", "b1"]


def test_an_idle_flow_saves_up_no_credit() -> None:
    shares: FairShares[str] = FairShares()
    for n in range(20):
        shares.add(("a",), f"a{n}", cost=10)
    taken(shares, 10)
    for n in range(10):
        shares.add(("b",), f"b{n}", cost=10)
    assert sum(item.startswith("b") for item in taken(shares, 10).split()) == 5


def test_what_is_taken_out_leaves_no_trace() -> None:
    shares: FairShares[str] = FairShares()
    shares.add(("a", "x"), "gone", cost=1)
    shares.add(("b", "y"), "there", cost=1)
    assert shares.discard(("a", "x"), "gone")
    assert not shares.discard(("a", "x"), "gone")
    assert list(shares) == ["there"]
    assert taken(shares, 1) == "there"
    assert not shares


def test_flows_that_come_and_go_are_forgotten() -> None:
    shares: FairShares[str] = FairShares()
    shares.add(("stays",), "last", cost=1e9)
    for n in range(2000):
        shares.add((f"run {n}",), f"item {n}", cost=1)
    taken(shares, 1999)
    assert len(shares._starts) < 1000
