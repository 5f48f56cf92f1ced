"""A caller that vanishes without a word, in a network namespace of this process's own: run by `unshare --net`.

A caller's machine loses its network while its call runs: no packet says that it is gone. Prints, as JSON, how long the
server held on to the call, and its counters after the network is back.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from reward_server.client import RewardClient
from reward_server.config import config_from_mapping
from reward_server.serving import server as server_module
from reward_server.serving.server import RewardServer
from reward_server.types import Completion, Group
from tests.support.observed import Page

SLOW = {"type": "function", "name": "slow", "function": f"{Path(__file__).parent}/misbehaving.py:slow_async"}
CONFIG = {"scorers": [{**SLOW, "timeout_s": 600}], "listen": "127.0.0.1:0", "metrics": {"listen": "127.0.0.1:0"}}

CALLER = """
import sys
from reward_server.client import RewardClient
from reward_server.types import Completion, Group
RewardClient(sys.argv[1]).score(Group("p", (Completion("sleep 600"),), group_id="lost"), timeout_s=600)
"""

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # <linux/sockios.h>, <linux/if.h>


def loopback(is_up: bool) -> None:
    """Plugs the network in or out: all of this namespace's goes through `lo`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        flags = flags | _IFF_UP if is_up else flags & ~_IFF_UP
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags))


async def calls_are(server: RewardServer, count: int, timeout_s: float) -> float | None:
    """Seconds until so many calls are in flight; None if they never are."""
    began = time.monotonic()
    while server.calls != count:
        if time.monotonic() - began > timeout_s:
            return None
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def main(keepalive_s: float) -> None:
    shorter = {"grpc.keepalive_time_ms": round(keepalive_s * 1000), "grpc.http2.ping_timeout_ms": 1000}
    server_module.OPTIONS = tuple({**dict(server_module.OPTIONS), **shorter}.items())
    loopback(True)
    server = RewardServer(config_from_mapping(CONFIG))
    await server.startup()
    command = [sys.executable, "-c", CALLER, server.endpoints[0]]
    caller = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
    assert await calls_are(server, 1, timeout_s=30) is not None
    await asyncio.sleep(0.5)  # gRPC's first ping, for its flow control, is answered by then
    loopback(False)
    caller.kill()
    await caller.wait()
    held_s = await calls_are(server, 0, timeout_s=5)
    loopback(True)
    page = await asyncio.to_thread(Page.at, server.metrics_url or "")
    with RewardClient(server.endpoints[0]) as client:
        after = await asyncio.to_thread(client.score, Group("p", (Completion("ab"),), group_id="next"), timeout_s=10)
    await server.shutdown()
    counters = [page.total(f"calls_{name}_total", method="ScoreGroup") for name in ("created", "finished")]
    print(json.dumps({"held_s": held_s, "counters": counters, "after": after.scorers[0].scores[0].value}))


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
