"""The servicer: authenticate -> decode -> admit -> score -> encode, and every end of a call under one table of codes.

Owns what happens between a request's bytes and a response's. Knows nothing of where scorers run (`scoring`) nor of
ports, signals and health (`server`).

A group that arrives again while it is being scored (a retry of a call that is still running) is scored once: the second
call waits for the first one's answer, and scores for itself only if the first is cancelled.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import grpc.aio

from reward_server import wire
from reward_server.errors import GroupTooLargeError, OverloadedError, RewardServerError, UnavailableError, code_of
from reward_server.execution.fair_queue import current_caller
from reward_server.observability import logs, tracing
from reward_server.observability.metrics import Metrics
from reward_server.observability.records import Records
from reward_server.serving.admission import Admission
from reward_server.serving.quotas import Quotas
from reward_server.serving.reload import CurrentScorers
from reward_server.serving.scorer_set import ScorerSet
from reward_server.serving.security import Security
from reward_server.types import Group

log = logging.getLogger("reward_server")

SERVICE_NAME = "reward_server.v1.RewardService"

# A client's name for itself, one a process: a rank keeps it when it connects anew, which its address does not.
CALLER_KEY = "reward-caller"

# Details travel as a header, percent-encoded; peers refuse headers beyond 8 KiB.
_LONGEST_DETAILS = 1500
_LONGEST_CALLER = 64


@dataclass(slots=True)
class _Call:
    """One call: what it asks, who asks, and how it ended. Nobody says of a cancelled one that it has."""

    method: str
    token_name: str = ""
    caller: str = ""
    names: dict[str, Any] = field(default_factory=dict)
    code: str = grpc.StatusCode.CANCELLED.name
    began: float = field(default_factory=time.perf_counter)


class RewardService:
    """Scores groups, each with the scorers that are current when it comes, until it is told to drain."""

    def __init__(
        self,
        current: CurrentScorers,
        security: Security,
        admission: Admission,
        metrics: Metrics,
        quotas: Quotas,
        records: Records | None = None,
    ):
        self._current = current
        self._security = security
        self._admission = admission
        self._metrics = metrics
        self._quotas = quotas
        self._records = records
        self._flights: dict[tuple[str, str], _Flight] = {}
        self._scoring: set[asyncio.Task[Any]] = set()
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._cut = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the methods. Messages stay bytes in them, so that their size is known before they are parsed."""
        methods = {"ScoreGroup": self._score_group, "GetServerInfo": self._get_server_info}
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(self._guarded(name, method)) for name, method in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
        server.add_registered_method_handlers(SERVICE_NAME, handlers)

    @property
    def calls(self) -> int:
        """How many calls are in flight."""
        return self._calls

    def drain(self) -> None:
        """From now on calls are refused as UNAVAILABLE. Those in flight go on."""
        self._draining = True

    async def idle(self) -> None:
        """Returns when no call is in flight, its response sent."""
        await self._idle.wait()

    async def cut(self) -> None:
        """Ends the calls in flight as UNAVAILABLE, and returns when their callers have been told."""
        self._draining = self._cut = True
        for task in self._scoring:
            task.cancel()
        await self.idle()

    # ------------------------------------------------------------------------------------------------------- the calls

    async def _get_server_info(self, request: bytes, call: _Call) -> bytes:
        wire.parse_info_request(request)
        return wire.encode_info(self._current.info).SerializeToString()

    async def _score_group(self, request: bytes, call: _Call) -> bytes:
        with self._current.held() as scorers:
            if len(request) > (limit := scorers.info.limits.max_group_bytes):
                raise GroupTooLargeError(
                    f"the group is {len(request)} bytes and this server takes {limit}: raise "
                    "limits.max_group_bytes in its configuration, or send fewer columns"
                )
            group = wire.parse_group(request)
            call.names = {"run_id": group.run_id, "step": group.step, "group_id": group.group_id}
            logs.call.set(call.names)
            current_caller.set((group.run_id, call.caller))
            scorers.admit(group)
            self._quotas.take(call.token_name, len(group))
            return await self._score_once(request, group, scorers)

    async def _score_once(self, request: bytes, group: Group, scorers: ScorerSet) -> bytes:
        key = (group.run_id, group.group_id)
        while (flight := self._flights.get(key)) is not None and flight.is_of(request, scorers):
            if (answer := await flight.landed()) is not None:
                return answer
        if flight is not None or not group.group_id:  # another group of that name, or one without
            return await self._score(request, group, scorers)
        self._flights[key] = flight = _Flight(request, scorers)
        try:
            return flight.land(await self._score(request, group, scorers))
        finally:
            del self._flights[key]
            flight.land(None)

    async def _score(self, request: bytes, group: Group, scorers: ScorerSet) -> bytes:
        with self._admission.admitted(len(group), len(request), current_caller.get()):
            self._metrics.queued(1, len(group), len(request))
            try:
                scores = await scorers.score(group)
            finally:
                self._metrics.queued(-1, -len(group), -len(request))
        if not any(score.status.is_failure for scorer in scores.scorers for score in scorer.scores):
            self._current.example = group
        if self._records is not None:
            self._records.offer(group, scores, len(request))
        return wire.encode_scores(scores).SerializeToString()

    # ---------------------------------------------------------------------------------------------------- their ends

    def _guarded(
        self, name: str, method: Callable[[bytes, _Call], Awaitable[bytes]]
    ) -> Callable[[bytes, grpc.aio.ServicerContext[bytes, bytes]], Awaitable[bytes]]:
        """Counts calls, and gives each error its code. What is not ours is logged, and tells the caller nothing."""

        async def guarded(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            call = self._begin(name, context)
            task = asyncio.current_task()
            assert task is not None
            self._scoring.add(task)
            trailers: tuple[tuple[str, str], ...] = ()
            try:
                call.token_name = self._security.authenticate(context.invocation_metadata() or ())
                if self._draining:
                    raise UnavailableError("the server is draining: it takes no new calls")
                answer = await _traced(method, request, call, context.invocation_metadata() or ())
                call.code = grpc.StatusCode.OK.name
                return answer
            except RewardServerError as error:
                code, details, trailers = code_of(error), str(error), _trailers(error)
                if isinstance(error, OverloadedError):
                    self._metrics.shed(error.reason)
            except asyncio.CancelledError:
                if not self._cut:
                    raise
                code, details = code_of(UnavailableError()), "the server stopped before this group was scored"
            except Exception:
                log.exception("a call failed for a reason that is this server's own")
                code, details = grpc.StatusCode.INTERNAL, "internal error; the server's log has its traceback"
            finally:
                self._scoring.discard(task)
            call.code = code.name
            return await _abort(context, code, details, trailers)

        return guarded

    def _begin(self, method: str, context: grpc.aio.ServicerContext[bytes, bytes]) -> _Call:
        call = _Call(method, caller=_caller_of(context))
        self._calls += 1
        self._idle.clear()
        self._metrics.call_began(method)
        # The stub asks for a class of its own where gRPC takes any callable.
        context.add_done_callback(functools.partial(self._call_ended, call))  # type: ignore[arg-type]
        return call

    def _call_ended(self, call: _Call, _: object) -> None:
        seconds = time.perf_counter() - call.began
        self._metrics.call_ended(call.method, call.code, seconds)
        fields = {**call.names, "code": call.code, "seconds": round(seconds, 6)}  # gRPC calls this outside of the task
        log.debug("%s: %s", call.method, call.code, extra={"fields": fields})
        self._calls -= 1
        if not self._calls:
            self._idle.set()


class _Flight:
    """A request that is being scored, and the calls that wait for it to land."""

    def __init__(self, request: bytes, scorers: ScorerSet):
        self._request = request
        self._scorers = scorers
        self._waiting: list[asyncio.Future[bytes | None]] = []

    def is_of(self, request: bytes, scorers: ScorerSet) -> bool:
        """Whether its answer will be that to this request, of these scorers."""
        return self._scorers is scorers and self._request == request

    def land(self, answer: bytes | None) -> Any:
        """Gives everyone the answer; None where there is none, and they have to score for themselves."""
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(answer)
        self._waiting.clear()
        return answer

    async def landed(self) -> bytes | None:
        """The answer, or None if the one who scored it was cancelled or failed."""
        waiting: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        return await waiting


async def _traced(
    method: Callable[[bytes, _Call], Awaitable[bytes]], request: bytes, call: _Call, metadata: Iterable[tuple[str, Any]]
) -> bytes:
    with tracing.span("reward.serve", {"method": call.method}, kind="SERVER", parent=metadata) as span:
        try:
            return await method(request, call)
        finally:
            span.set_attributes(call.names)


def _caller_of(context: grpc.aio.ServicerContext[bytes, bytes]) -> str:
    """The client's name for itself, or where it connects from."""
    given = next((value for key, value in context.invocation_metadata() or () if key == CALLER_KEY), None)
    return given[:_LONGEST_CALLER] if isinstance(given, str) else str(context.peer())


def _trailers(error: RewardServerError) -> tuple[tuple[str, str], ...]:
    """Push-back as gRFC A6 has it: the client waits that long."""
    if isinstance(error, OverloadedError) and error.retry_after_s is not None:
        return (("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))),)
    return ()


async def _abort(
    context: grpc.aio.ServicerContext[bytes, bytes],
    code: grpc.StatusCode,
    details: str,
    trailers: tuple[tuple[str, str], ...],
) -> NoReturn:
    text = details.encode("utf-8", "backslashreplace").decode("utf-8")
    text = text if len(text) <= _LONGEST_DETAILS else f"{text[: _LONGEST_DETAILS - 1]}…"
    await context.abort(code, text, trailers)
