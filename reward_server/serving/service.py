"""The gRPC servicer: authenticate -> decode -> admit -> score -> encode, and the status code of every call.

Owns what happens between the bytes of a request and the bytes of its response. Knows nothing of where scorers run
(`scorer_set`), nor of ports, signals and health (`server`).

A group that arrives again while it is being scored, as the retry of a call that still runs does, is scored once: see
`single_flight`. A group whose completions are sent one by one is gathered first: see `samples`. Each of several groups
that one call brings is a call of its own here: see `group_streams`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NoReturn, cast

import grpc
import grpc.aio

from reward_server import wire
from reward_server.config import LimitsConfig
from reward_server.errors import GroupTooLargeError, OverloadedError, RewardServerError, UnavailableError, code_of
from reward_server.execution.fair_queue import Caller, current_caller
from reward_server.observability import logs, tracing
from reward_server.observability.metrics import Metrics
from reward_server.observability.records import Records
from reward_server.serving import group_streams
from reward_server.serving.admission import Admission
from reward_server.serving.contexts import CallContext, StreamContext
from reward_server.serving.peers import PEER_METHOD, Peers
from reward_server.serving.quotas import Quotas
from reward_server.serving.reload import CurrentScorers
from reward_server.serving.samples import Samples, parsed
from reward_server.serving.scorer_set import ScorerSet
from reward_server.serving.security import Security
from reward_server.serving.single_flight import SingleFlight
from reward_server.types import Group, Sample, Score, all_ok
from reward_server.wire_groups import PUSHBACK_KEY

log = logging.getLogger("reward_server")

SERVICE_NAME = "reward_server.v1.RewardService"

STREAM = "ScoreGroups"
"""The method whose answers are a stream."""

# The metadata key of a client's own name, one per process. A rank that reconnects keeps it, unlike its address.
CALLER_KEY = "reward-caller"

# The details of an error travel as a percent-encoded header, and peers refuse headers of more than 8 KiB.
_MAX_DETAILS = 1500
_MAX_CALLER = 64

_OK = grpc.StatusCode.OK.name
_CANCELLED = grpc.StatusCode.CANCELLED.name


class _Call:
    """One call: its method, its caller, the group that it brings, and the code that it ended with."""

    __slots__ = ("began", "caller", "code", "context", "group_names", "method", "token_name")

    def __init__(self, method: str, caller: str, context: CallContext):
        self.method = method
        self.caller = caller
        self.context = context
        self.token_name = ""
        self.group_names: dict[str, Any] = {}  # run_id, step and group_id
        self.code = _CANCELLED  # until another code is set, since nothing tells of a cancellation
        self.began = time.perf_counter()

    def note(self, group: Group | Sample) -> None:
        """Notes which group the call is about, for logs and spans."""
        self.group_names = {"run_id": group.run_id, "step": group.step, "group_id": group.group_id}
        logs.call.set(self.group_names)


class RewardService:
    """Scores groups until it is told to drain, each with the scorers that are current when it arrives."""

    def __init__(
        self,
        current: CurrentScorers,
        security: Security,
        admission: Admission,
        metrics: Metrics,
        quotas: Quotas,
        limits: LimitsConfig,
        records: Records | None = None,
        peers: Peers | None = None,
    ):
        self._current = current
        self._security = security
        self._admission = admission
        self._metrics = metrics
        self._quotas = quotas
        self._records = records
        self._methods = {
            "ScoreGroup": self._score_group,
            STREAM: self._score_groups,
            "ScoreCompletion": self._score_completion,
            "GetServerInfo": self._get_server_info,
        }
        if peers is not None:
            self._methods[PEER_METHOD] = self._join_cohort
        self._flights = SingleFlight()
        self.samples = Samples(metrics, limits)
        self._peers = peers
        self._tasks: set[asyncio.Task[Any]] = set()  # those that serve calls, up to their responses
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._cut = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the methods. They get serialised messages, whose size is known before they are parsed."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(functools.partial(self.call, name)) for name in self._methods
        }
        handlers[STREAM] = grpc.unary_stream_rpc_method_handler(functools.partial(self.call, STREAM))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    async def call(self, name: str, request: bytes, context: CallContext) -> bytes:
        """Serves one call of a method, by its name, in a task of its own. The call ends with the task.

        An error gets its code and ends in `context.abort`, which raises; one that is not ours is logged, and its caller
        is not told more than that. The answers of ScoreGroups, whose context is a StreamContext, are written to that.
        """
        metadata = context.invocation_metadata() or ()
        call, task = self._begin(name, context, metadata)
        trailers: tuple[tuple[str, str], ...] = ()
        try:
            call.token_name = self._security.authenticate(metadata)
            if self._draining:
                raise UnavailableError("the server is draining: it takes no new calls")
            method = self._methods[name]
            is_traced = tracing.is_on() and name != STREAM  # whose groups have a span each
            answer = await (_traced(method, request, call, metadata) if is_traced else method(request, call))
            call.code = _OK
            return answer
        except RewardServerError as error:
            code, details, trailers = code_of(error), str(error), _trailers(error)
            if isinstance(error, OverloadedError) and error.reason:
                self._metrics.shed(error.reason)
        except asyncio.CancelledError:
            if not self._cut:
                raise
            code, details = code_of(UnavailableError()), "the server stopped before this group was scored"
        except Exception:
            log.exception("a call failed because of an internal error")
            code, details = grpc.StatusCode.INTERNAL, "internal error; the server's log has its traceback"
        finally:
            self._tasks.discard(task)
        call.code = code.name
        return await _abort(context, code, details, trailers)

    @property
    def calls(self) -> int:
        """The number of calls in flight."""
        return self._calls

    def drain(self) -> None:
        """Refuses calls as UNAVAILABLE from now on. Calls in flight go on."""
        self._draining = True
        self.samples.calls.drain()

    async def idle(self) -> None:
        """Returns when no call is in flight and every response is sent."""
        await self._idle.wait()

    async def cut(self) -> None:
        """Ends the calls in flight as UNAVAILABLE, and returns when their callers have been told."""
        self._draining = self._cut = True
        for task in self._tasks:
            task.cancel()
        await self.idle()

    async def close(self) -> None:
        """Ends what no call waits for any more."""
        await self.samples.calls.close()
        if self._peers is not None:
            await self._peers.close()

    # ------------------------------------------------------------------------------------------------------- the calls

    async def _get_server_info(self, request: bytes, call: _Call) -> bytes:
        wire.parse_info_request(request)
        return wire.encode_info(self._current.info).SerializeToString()

    async def _score_group(self, request: bytes, call: _Call) -> bytes:
        with self._current.held() as scorers:
            _refuse_large(request, scorers)
            return await self._score_once(request, wire.parse_group(request), scorers, call)

    async def _score_groups(self, request: bytes, call: _Call) -> bytes:
        score = functools.partial(self.call, "ScoreGroup")
        await group_streams.answer(request, cast(StreamContext, call.context), score)
        return b""

    async def _score_completion(self, request: bytes, call: _Call) -> bytes:
        """Scores one completion with its group, which gathers in this process or in another one of this server."""
        _refuse_large(request, self._current.scorers)
        sample = parsed(request)
        place = self._peers.place_of(sample) if self._peers is not None and sample.group_id else None
        if self._peers is None or place is None:
            return await self._join_cohort(request, call)
        metadata = call.context.invocation_metadata() or ()
        return await self._peers.forward(place, request, metadata, call.context.time_remaining())

    async def _join_cohort(self, request: bytes, call: _Call) -> bytes:
        _refuse_large(request, self._current.scorers)
        sample = parsed(request)
        call.note(sample)
        score = functools.partial(self._score_gathered, call)
        return await self.samples.answer(len(request), sample, call.token_name, self._current.scorers, score)

    async def _score_gathered(self, call: _Call, request: bytes, group: Group) -> bytes:
        """Scores a cohort as if the call that began it had brought the whole group."""
        with self._current.held() as scorers:
            return await self._score_once(request, group, scorers, call)

    async def _score_once(self, request: bytes, group: Group, scorers: ScorerSet, call: _Call) -> bytes:
        """Scores a group; one that is being scored already for another call is not scored again."""
        call.note(group)
        caller = (group.run_id, call.caller)
        current_caller.set(caller)
        scorers.admit(group)
        self._quotas.take(call.token_name, len(group))
        if not group.group_id:
            return await self._score(request, group, scorers, caller)
        key = (group.run_id, group.group_id)
        if (own := self._flights.claim(key, request, scorers)) is not None:
            with own:
                own.answer = answer = await self._score(request, group, scorers, caller)
                return answer
        return await self._flights.run(key, request, scorers, lambda: self._score(request, group, scorers, caller))

    async def _score(self, request: bytes, group: Group, scorers: ScorerSet, caller: Caller) -> bytes:
        with self._admission.admitted(len(group), len(request), caller):
            scores = await scorers.score(group)
        if not any(_has_failure(scorer.scores) for scorer in scores.scorers):
            self._current.example = group
        if self._records is not None:
            named = group if group.group_id else dataclasses.replace(group, group_id=f"unnamed-{uuid.uuid4().hex}")
            self._records.offer(named, scores, len(request))
        return wire.encode_scores(scores).SerializeToString()

    # ----------------------------------------------------------------------------------------------- how a call ends

    def _begin(
        self, method: str, context: CallContext, metadata: Iterable[tuple[str, Any]]
    ) -> tuple[_Call, asyncio.Task[Any]]:
        call, task = _Call(method, _caller_of(context, metadata), context), asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._calls += 1
        self._idle.clear()
        self._metrics.call_began(method)
        # Not by the context's own callbacks: those refer to their context, so that each call would be left to the
        # garbage collector.
        task.add_done_callback(functools.partial(self._call_ended, call))
        return call, task

    def _call_ended(self, call: _Call, _: object) -> None:
        seconds = time.perf_counter() - call.began
        self._metrics.call_ended(call.method, call.code, seconds)
        if log.isEnabledFor(logging.DEBUG):
            # This runs in the context in which the task began, which does not have the group's names.
            fields = {**call.group_names, "code": call.code, "seconds": round(seconds, 6)}
            log.debug("%s: %s", call.method, call.code, extra={"fields": fields})
        self._calls -= 1
        if not self._calls:
            self._idle.set()


def _has_failure(scores: Sequence[Score]) -> bool:
    return not all_ok(scores) and any(score.status.is_failure for score in scores)


def _refuse_large(request: bytes, scorers: ScorerSet) -> None:
    if len(request) > (limit := scorers.info.limits.max_group_bytes):
        raise GroupTooLargeError(
            f"the group is {len(request)} bytes and this server takes {limit}: raise "
            "limits.max_group_bytes in its configuration, or send fewer columns"
        )


async def _traced(
    method: Callable[[bytes, _Call], Awaitable[bytes]], request: bytes, call: _Call, metadata: Iterable[tuple[str, Any]]
) -> bytes:
    with tracing.span("reward.serve", {"method": call.method}, kind="SERVER", parent=metadata) as span:
        try:
            return await method(request, call)
        finally:
            span.set_attributes(call.group_names)


def _caller_of(context: CallContext, metadata: Iterable[tuple[str, Any]]) -> str:
    """The client's own name, or else the address that it connects from."""
    for key, value in metadata:
        if key == CALLER_KEY and isinstance(value, str):
            return value[:_MAX_CALLER]
    return str(context.peer())


def _trailers(error: RewardServerError) -> tuple[tuple[str, str], ...]:
    """Push-back as in gRFC A6: the client waits that long before it sends the group again."""
    if isinstance(error, OverloadedError) and error.retry_after_s is not None:
        return ((PUSHBACK_KEY, str(round(error.retry_after_s * 1000))),)
    return ()


async def _abort(
    context: CallContext, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str], ...]
) -> NoReturn:
    text = details.encode("utf-8", "backslashreplace").decode("utf-8")
    text = text if len(text) <= _MAX_DETAILS else f"{text[: _MAX_DETAILS - 1]}…"
    await context.abort(code, text, trailers)
