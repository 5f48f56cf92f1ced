"""`RewardClient` for threads and blocking code, `AsyncRewardClient` for asyncio.

Owns a channel and the calls on it. `retries` decides whether a call is sent again.

    client = RewardClient("localhost:50051")
    client.connect(timeout_s=30)            the server's info, or an error with the reason
    pending = client.submit(group)          a concurrent.futures.Future of GroupScores
    scores = pending.result()
    several = client.submit_all(groups)     a future each; the groups share calls
    client.close()
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Self

import grpc
import grpc.aio

from reward_server import errors
from reward_server.client.attempts import Attempts
from reward_server.client.base import BaseClient, span_attributes
from reward_server.client.credentials import aio_channel, channel, handshake_failure
from reward_server.client.group_streams import GroupStream, Offer, parts
from reward_server.client.replicas import Replicas
from reward_server.client.retries import HEDGE_CALLS, Counts, HedgeAfter, Retries, is_retryable
from reward_server.client.timers import Timers
from reward_server.observability import tracing
from reward_server.observability.tracing import Metadata
from reward_server.types import WIRE_VERSION, Group, GroupScores, ServerInfo
from reward_server.v1 import reward_pb2 as pb
from reward_server.v1 import reward_pb2_grpc as pb_grpc


class RewardClient(BaseClient):
    """A client for threads and for blocking code.

    Several threads may use it. It may be made before a fork: it connects at its first use, and a forked child makes a
    connection of its own.
    """

    def _set_up(self) -> None:
        # By process ID: a forked child leaves its parent's connection alone.
        self._sessions: dict[int, _Session] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counts(self) -> Counts:
        """How often groups were sent again since the client connected."""
        return self._session().retries.counts

    def connect(self, timeout_s: float | None = None) -> ServerInfo:
        """The server's info. Waits up to `timeout_s` for a server that is still starting.

        Raises UnavailableError with the reason if no server answers until then, and at once if TLS refuses the server;
        CredentialsError if the server refuses the token; WireVersionError if it speaks another wire version.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        try:
            return self._info_of_an_application(deadline)
        except errors.UnavailableError as error:
            if handshake_failure(str(error)) is not None:  # waiting would not help
                raise
            reason = error
        while not self._is_ready(min(_ONE_CONNECTION_S, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise errors.UnavailableError(f"waited {timeout_s:g} s: {reason}{self.hint(str(reason))}") from reason
            if self._limits is None:  # nothing was answered yet, so that no call is cut
                self.close()  # a proxy that has started anew may keep an old connection that leads nowhere
        return self._info_of_an_application(deadline)

    def _is_ready(self, timeout_s: float) -> bool:
        """Whether there is a connection to a server that is well; waits for one."""
        try:
            grpc.channel_ready_future(self._session().channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            return False
        return True

    def _info_of_an_application(self, deadline: float) -> ServerInfo:
        """The server's info. Asks again where a proxy answers and the application behind it is still starting.

        And where nothing comes back: a proxy may hold for ever what reaches it while it learns of the application.
        """
        while True:
            left_s = max(0.1, deadline - time.monotonic())
            try:
                return self.info(min(_ONE_ASK_S, left_s))
            except errors.DeadlineError:
                if left_s <= _ONE_ASK_S:
                    raise
            except errors.CallError as error:
                if error.code is not grpc.StatusCode.NOT_FOUND or time.monotonic() + _ASK_AGAIN_S > deadline:
                    raise
                time.sleep(_ASK_AGAIN_S)

    def info(self, timeout_s: float | None = None) -> ServerInfo:
        """The server's info. Raises UnavailableError at once, with the reason, if no server answers."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        request = pb.GetServerInfoRequest(wire_version=WIRE_VERSION)
        try:
            response = self._session().stub.GetServerInfo(request, timeout=timeout_s, metadata=self.metadata())
        except grpc.RpcError as error:
            raise self.error_of(error, timeout_s) from error
        return self.decode_info(response)

    def submit(self, group: Group, *, timeout_s: float | None = None) -> Future[GroupScores]:
        """Sends a group and returns at once. The future gets the scores or one of our errors.

        A failure that another attempt may mend is retried until the deadline, at other replicas if there are any.
        Cancelling the future cancels what is in flight, on the server too. Raises InvalidGroupError for a group that
        cannot be sent.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        session, request = self._session(), self.encode(group)
        return self._attempted(session, group, timeout_s, functools.partial(self._send, session, request))

    def submit_all(self, groups: Sequence[Group], *, timeout_s: float | None = None) -> list[Future[GroupScores]]:
        """Sends groups and returns at once, with a future each, which is as that of `submit`.

        Groups share calls where the server takes several in one, which spares both sides a part of their work; the
        calls are spread over the replicas. A group that cannot be sent has its InvalidGroupError in its future. A group
        that is cancelled is scored to its end if others of its call are.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        session, futures = self._session(), dict[int, Future[GroupScores]]()
        requests: dict[int, pb.ScoreGroupRequest] = {}
        for index, group in enumerate(groups):
            try:
                requests[index] = self.encode(group)
            except errors.RewardServerError as error:
                futures[index] = _failed(error)
        sizes = {index: request.ByteSize() for index, request in requests.items()}
        for part in parts(sizes, session.replicas.count(), session.offer.most_groups(self._limits)):
            pairs = [(groups[index], requests[index]) for index in part]
            futures.update(zip(part, self._submit_part(session, pairs, timeout_s), strict=True))
        return [futures[index] for index in range(len(groups))]

    def _submit_part(
        self, session: _Session, part: Sequence[tuple[Group, pb.ScoreGroupRequest]], timeout_s: float
    ) -> list[Future[GroupScores]]:
        """Sends groups in one call. One group alone, or one that is sent again, goes by ScoreGroup."""
        alone = functools.partial(self._send, session)
        if len(part) == 1:
            return [self._attempted(session, group, timeout_s, functools.partial(alone, one)) for group, one in part]
        stream = GroupStream(functools.partial(self._open_stream, session), alone, session.offer)
        futures = [self._attempted(session, group, timeout_s, stream.sender(request)) for group, request in part]
        stream.begin(timeout_s)
        return futures

    def _open_stream(self, session: _Session, request: Any, left_s: float) -> Any:
        return session.stub.ScoreGroups(request, timeout=left_s, wait_for_ready=True, metadata=self.metadata())

    def _send(self, session: _Session, request: pb.ScoreGroupRequest, left_s: float, trace: Metadata) -> Any:
        metadata = self.metadata() + trace
        return session.stub.ScoreGroup.future(request, timeout=left_s, wait_for_ready=True, metadata=metadata)

    def _attempted(
        self, session: _Session, group: Group, timeout_s: float, send: Callable[[float, Metadata], Any]
    ) -> Future[GroupScores]:
        """The future of a group whose first attempt has been sent, with the metadata of its trace."""
        future: Future[GroupScores] = Future()
        attributes = span_attributes(group) if tracing.is_on() else {}
        span, trace = tracing.start_client_span("reward.score", attributes)
        attempts = Attempts(
            lambda left_s: send(left_s, trace),
            session.retries,
            session.timers,
            timeout_s,
            lambda call, failures: self._finish(call, failures, group, timeout_s, future),
        )
        attempts.start()
        future.add_done_callback(lambda f: attempts.cancel() if f.cancelled() else None)
        if span is not None:
            future.add_done_callback(
                lambda f: tracing.end_span(span, CancelledError() if f.cancelled() else f.exception())
            )
        return future

    def score(self, group: Group, *, timeout_s: float | None = None) -> GroupScores:
        """Sends a group and waits for its scores. Raises one of our errors."""
        return self.submit(group, timeout_s=timeout_s).result()

    def close(self) -> None:
        """Ends the calls in flight and the connection. A client that is used after that connects again."""
        session = self._sessions.pop(os.getpid(), None)
        if session is not None:
            session.close()

    def _finish(
        self, call: Any, failures: Sequence[Any], group: Group, timeout_s: float, future: Future[GroupScores]
    ) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if call is None:
                raise errors.CallError(f"the call to {self.endpoint} was cancelled: Channel closed!", _CANCELLED)
            if call in failures:
                raise self.error_of(call, timeout_s, failures) from call
            future.set_result(self.decode(call.result(), group))
        except Exception as error:
            future.set_exception(error)

    def _session(self) -> _Session:
        pid = os.getpid()
        if pid not in self._sessions:
            self._sessions.setdefault(
                pid, _Session(channel(self._target, self._options, self._tls), self._hedge_after_s, self.replicas())
            )  # if two threads come here, the first one's session is used
        return self._sessions[pid]


_CANCELLED = grpc.StatusCode.CANCELLED
_ASK_AGAIN_S = 0.5
_ONE_ASK_S = 10.0
_ONE_CONNECTION_S = 15.0


class _Session:
    """The state of a client in one process. Connects at the first call."""

    def __init__(self, opened: grpc.Channel, hedge_after_s: HedgeAfter, replicas: Replicas):
        self.channel = opened
        self.replicas = replicas
        self.offer = Offer()
        self.stub = pb_grpc.RewardServiceStub(opened)
        self.retries = Retries(hedge_after_s)
        self.timers = Timers()

    def close(self) -> None:
        self.channel.close()
        self.timers.hurry()  # calls that wait for another attempt find the channel closed


def _failed(error: Exception) -> Future[GroupScores]:
    future: Future[GroupScores] = Future()
    future.set_exception(error)
    return future


class AsyncRewardClient(BaseClient):
    """A client for asyncio. It belongs to the event loop that uses it first.

    gRPC's asyncio does not work in a child that was forked after its parent used it. There, use `RewardClient`, or
    start processes by spawn.
    """

    def _set_up(self) -> None:
        self._channel: grpc.aio.Channel | None = None
        self._retries = Retries(self._hedge_after_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def counts(self) -> Counts:
        """How often groups were sent again."""
        return self._retries.counts

    async def info(self, timeout_s: float | None = None) -> ServerInfo:
        """The server's info. Raises UnavailableError at once, with the reason, if no server answers."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        request = pb.GetServerInfoRequest(wire_version=WIRE_VERSION)
        try:
            response = await self._stub().GetServerInfo(request, timeout=timeout_s, metadata=self.metadata())
        except grpc.RpcError as error:
            raise self.error_of(error, timeout_s) from error
        return self.decode_info(response)

    async def score(self, group: Group, *, timeout_s: float | None = None) -> GroupScores:
        """Scores a group, with retries until the deadline. Cancelling the task cancels the call on the server.

        Raises one of our errors.
        """
        with tracing.span("reward.score", span_attributes(group), kind="CLIENT"):
            return await self._score(group, self.timeout_s if timeout_s is None else timeout_s)

    async def _score(self, group: Group, timeout_s: float) -> GroupScores:
        deadline = time.monotonic() + timeout_s
        request = self.encode(group)
        failures: list[Any] = []
        while True:
            try:
                return self.decode(await self._first_answer(request, deadline), group)
            except grpc.RpcError as error:
                failures.append(error)
                pause_s = self._retries.pause_s(error, len(failures), deadline - time.monotonic())
                if pause_s is None:
                    raise self.error_of(error, timeout_s, failures) from error
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Ends the calls in flight and the connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _first_answer(self, request: pb.ScoreGroupRequest, deadline: float) -> pb.ScoreGroupResponse:
        """The first answer to an attempt and its hedges. Raises the error of the last of them if all fail."""
        calls = {asyncio.create_task(self._attempt(request, deadline))}
        hedges = 0
        try:
            while True:
                hedge_after_s = self._retries.hedge_after_s(hedges)
                done, _ = await asyncio.wait(calls, timeout=hedge_after_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    hedges += 1
                    if self._retries.may_hedge():
                        calls |= {asyncio.create_task(self._attempt(request, deadline)) for _ in range(HEDGE_CALLS)}
                for call in done:
                    error = call.exception()
                    if len(calls) == 1 or error is None or not is_retryable(error):
                        return call.result()
                    calls.discard(call)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _attempt(self, request: pb.ScoreGroupRequest, deadline: float) -> pb.ScoreGroupResponse:
        began = time.monotonic()
        response = await self._stub().ScoreGroup(
            request,
            timeout=max(0.0, deadline - began),
            wait_for_ready=True,
            metadata=self.metadata() + tracing.trace_metadata(),
        )
        self._retries.answered(time.monotonic() - began)
        return response

    def _stub(self) -> pb_grpc.RewardServiceStub:
        if self._channel is None:
            self._channel = aio_channel(self._target, self._options, self._tls)
        return pb_grpc.RewardServiceStub(self._channel)
