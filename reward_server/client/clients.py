"""`RewardClient` for threads and code that waits, `AsyncRewardClient` for asyncio.

Owns a channel and the calls on it.

    client = RewardClient("localhost:50051")
    client.connect(timeout_s=30)            the server's info, or an error that says why there is none
    pending = client.submit(group)          a concurrent.futures.Future of GroupScores
    scores = pending.result()
    client.close()
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future
from typing import Any, Self

import grpc
import grpc.aio

from reward_server import errors
from reward_server.client.base import CHANNEL_OPTIONS, BaseClient, Endpoint
from reward_server.types import WIRE_VERSION, Group, GroupScores, ServerInfo
from reward_server.v1 import reward_pb2 as pb
from reward_server.v1 import reward_pb2_grpc as pb_grpc


class RewardClient(BaseClient):
    """A client for threads and for code that waits.

    Calls may come from several threads. It may be made before a fork: its channel is opened by first use, and a forked
    child opens its own.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_s: float = 60.0):
        super().__init__(endpoint, timeout_s=timeout_s)
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._pid = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self, timeout_s: float | None = None) -> ServerInfo:
        """The server's info, waiting up to `timeout_s` for a server that is still starting.

        Raises UnavailableError with the reason if none answers until then, WireVersionError if it is another's.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        try:
            return self.info(timeout_s)
        except errors.UnavailableError as error:
            reason = error
        try:
            grpc.channel_ready_future(self._open()).result(timeout=max(0.0, deadline - time.monotonic()))
        except grpc.FutureTimeoutError:
            raise errors.UnavailableError(f"waited {timeout_s:g} s: {reason}") from reason
        return self.info(max(0.1, deadline - time.monotonic()))

    def info(self, timeout_s: float | None = None) -> ServerInfo:
        """What the server is. Fails at once, with the reason, where nobody answers."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        request = pb.GetServerInfoRequest(wire_version=WIRE_VERSION)
        try:
            response = self._stub().GetServerInfo(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self.error_of(error, timeout_s) from error
        return self.decode_info(response)

    def submit(self, group: Group, *, timeout_s: float | None = None) -> Future[GroupScores]:
        """Sends a group and returns at once; the future holds its scores or one of our errors.

        Cancelling the future cancels the call on the server. Raises InvalidGroupError for what cannot be sent.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        call = self._stub().ScoreGroup.future(self.encode(group), timeout=timeout_s, wait_for_ready=True)
        future: Future[GroupScores] = Future()
        future.add_done_callback(lambda f: call.cancel() if f.cancelled() else None)
        call.add_done_callback(lambda _: self._finish(call, group, timeout_s, future))
        return future

    def score(self, group: Group, *, timeout_s: float | None = None) -> GroupScores:
        """Scores a group and waits for it."""
        return self.submit(group, timeout_s=timeout_s).result()

    def close(self) -> None:
        """Ends the calls in flight and the connection. The client may be used again, and connects anew."""
        with self._lock:
            if self._channel is not None and self._pid == os.getpid():
                self._channel.close()
            self._channel = None

    def _finish(self, call: Any, group: Group, timeout_s: float, future: Future[GroupScores]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(self.decode(call.result(), group))
        except grpc.RpcError as error:
            future.set_exception(self.error_of(error, timeout_s))
        except Exception as error:
            future.set_exception(error)

    def _open(self) -> grpc.Channel:
        with self._lock:
            if self._channel is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._channel = grpc.insecure_channel(self._target, options=CHANNEL_OPTIONS)
            return self._channel

    def _stub(self) -> pb_grpc.RewardServiceStub:
        return pb_grpc.RewardServiceStub(self._open())


class AsyncRewardClient(BaseClient):
    """A client for asyncio; belongs to the event loop that uses it first.

    gRPC's asyncio cannot be used in a child that was forked after its parent used it: there use `RewardClient`, or
    start processes by spawn.
    """

    def __init__(self, endpoint: Endpoint, *, timeout_s: float = 60.0):
        super().__init__(endpoint, timeout_s=timeout_s)
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def info(self, timeout_s: float | None = None) -> ServerInfo:
        """What the server is. Fails at once, with the reason, where nobody answers."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        request = pb.GetServerInfoRequest(wire_version=WIRE_VERSION)
        try:
            response = await self._stub().GetServerInfo(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self.error_of(error, timeout_s) from error
        return self.decode_info(response)

    async def score(self, group: Group, *, timeout_s: float | None = None) -> GroupScores:
        """Scores a group. Cancelling the task cancels the call on the server."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        request = self.encode(group)
        try:
            response = await self._stub().ScoreGroup(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError as error:
            raise self.error_of(error, timeout_s) from error
        return self.decode(response, group)

    async def close(self) -> None:
        """Ends the calls in flight and the connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def _stub(self) -> pb_grpc.RewardServiceStub:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=CHANNEL_OPTIONS)
        return pb_grpc.RewardServiceStub(self._channel)
