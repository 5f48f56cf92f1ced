"""A client and a server in an environment that has our dependencies and nothing of this suite.

python -m tests.support.elsewhere client '{"endpoint": …, "tls": …, "token": …}'    prints versions and scores
python -m tests.support.elsewhere serve '{"scorers": …}'                            prints the endpoint; ends with stdin
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.metadata import version
from typing import Any

from reward_server.client import AsyncRewardClient, ClientTLS, RewardClient, remote_rewards
from reward_server.launch import launch_server
from reward_server.types import Completion, Group

GROUP = Group("p", (Completion("ab"), Completion("abc")), run_id="r", step=0, group_id="g")


def options(asked: dict[str, Any]) -> dict[str, Any]:
    tls = ClientTLS(ca_file=asked["ca"]) if "ca" in asked else None
    return {"token": asked.get("token"), "tls": tls, "timeout_s": 20}


def client(asked: dict[str, Any]) -> dict[str, Any]:
    """What each kind of client gets for a group of two, and with what it got it."""
    with RewardClient(asked["endpoint"], **options(asked)) as blocking:
        first = [score.value for score in blocking.score(GROUP).scorers[0].scores]
        retries = blocking.counts.retries
    rewards = [] if "unserved" in asked else remote_rewards(asked["endpoint"], sync=True, **options(asked))
    again = [reward(prompts=["p", "p"], completions=["ab", "abc"]) for reward in rewards]
    return {"scores": first, "retries": retries, "async": asyncio.run(asynchronous(asked)), "rewards": again}


async def asynchronous(asked: dict[str, Any]) -> list[float | None]:
    async with AsyncRewardClient(asked["endpoint"], **options(asked)) as there:
        return [score.value for score in (await there.score(GROUP)).scorers[0].scores]


def main() -> None:
    command, asked = sys.argv[1], json.loads(sys.argv[2])
    if command == "client":
        found = client(asked)
        names = {name: version(name) for name in ("grpcio", "protobuf", "pydantic")}
        loaded = [name for name in ("numpy", "torch") if name in sys.modules]
        print(json.dumps({**found, "versions": names, "loaded": loaded}))
    else:
        server = launch_server(asked, listen=asked["listen"], timeout_s=60)
        print(server.endpoint, flush=True)
        sys.stdin.read()
        server.stop()


if __name__ == "__main__":
    main()
