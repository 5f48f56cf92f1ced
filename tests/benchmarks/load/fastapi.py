"""Part (b): the same callers before a FastAPI server that scores one request at a time, as OpenRLHF's serve_rm does.

Its route is async and runs the model where it stands, a request's completions as one batch padded to the longest: so
does `openrlhf.cli.serve_rm` (batch_size unset), which sends and takes the same lists in JSON.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from reward_server.types import Group
from tests.benchmarks.load.reward_model import InProcess, Server, child, compare, ratio, report, save_model, service
from tests.benchmarks.load.settings import Settings


def run(settings: Settings) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        asyncio.run(_run(save_model(Path(folder), settings.device), settings))


async def _run(model: str, settings: Settings) -> None:
    async with service(model, settings) as served, fastapi(model, settings) as rival:
        results = await compare([rival, served], settings)
    report(results)
    print(f"The service scores {ratio(results, 'service', 'fastapi'):.2f} × the completions of the FastAPI server.")


@asynccontextmanager
async def fastapi(model: str, settings: Settings) -> AsyncIterator[Server]:
    """The FastAPI server, and a kept connection for each caller."""
    with child("tests.benchmarks.load.fastapi", model) as (process, endpoint):
        yield Server("fastapi", process, [_http_caller(endpoint) for _ in range(settings.callers)])


def _http_caller(endpoint: str) -> Callable[[Group], Any]:
    """HTTP/1.1 without a client library's own time."""
    host, _, port = endpoint.partition(":")
    line: list[Any] = []

    async def call(group: Group) -> None:
        if not line:
            line.extend(await asyncio.open_connection(host, int(port)))
        reader, writer = line
        body = json.dumps({"query": [f"{group.prompt}{content}" for content in group.contents()]}).encode()
        head = f"POST /get_reward HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        header = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert header.startswith(b"http/1.1 200"), header
        answer = json.loads(await reader.readexactly(int(header.partition(b"content-length: ")[2].split(b"\r\n")[0])))
        assert len(answer["rewards"]) == len(group)

    return call


def serve(model: str) -> None:
    """Until it is killed."""
    import uvicorn  # noqa: PLC0415 - only this process pays for it
    from fastapi import FastAPI, Request  # noqa: PLC0415
    from fastapi.responses import JSONResponse  # noqa: PLC0415

    rewards = _Rewards("rewards", model)
    app = FastAPI()

    async def get_reward(request: Request) -> JSONResponse:
        return JSONResponse({"rewards": rewards.of((await request.json())["query"])})

    # Here FastAPI could not resolve the annotations of a local function.
    get_reward.__annotations__ = {"request": Request, "return": JSONResponse}
    app.post("/get_reward", response_model=None)(get_reward)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
    threading.Thread(target=rewards.tell, daemon=True).start()
    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_keep_alive=300)
    uvicorn.Server(config).run(sockets=[listener])


class _Rewards(InProcess):
    """The same model code as the other targets'."""

    def __init__(self, name: str, model: str):
        super().__init__(name, model)
        self._totals = dict.fromkeys(("batches", "rows", "tokens", "padded_tokens", "busy_s", "idle_s"), 0.0)

    def of(self, queries: list[str]) -> list[float]:
        ids = self.scorer.models.tokenizer(text=queries, add_special_tokens=False)["input_ids"]
        began = time.perf_counter()
        logits = self.scorer.models.outputs(ids, 0, "padded")[:, 0].tolist()
        lengths = [len(row) for row in ids]
        counts = (1, len(ids), sum(lengths), max(lengths) * len(ids), time.perf_counter() - began, 0.0)
        for name, count in zip(self._totals, counts, strict=True):
            self._totals[name] += count
        return logits

    def tell(self) -> None:
        """The counts so far, for each line of input."""
        for _ in sys.stdin:
            print(json.dumps({**self._totals, "cpu_s": time.process_time()}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
