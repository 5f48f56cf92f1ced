"""A ScoreGroups call: each of its groups as a ScoreGroup call of its own, and their answers as they become ready.

Owns the tasks of the groups and the stream of answers. What becomes of a group is decided where any ScoreGroup call is:
`service` serves it, with a context of its own whose end goes into the stream. Answers that become ready in one turn of
the event loop, or while a message is being sent, share a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NoReturn

import grpc

from reward_server import wire_groups
from reward_server.observability.tracing import TRACE_KEYS
from reward_server.serving.contexts import CallContext, StreamContext
from reward_server.wire_groups import Answer, Failure, Metadata

ScoreGroup = Callable[[bytes, CallContext], Awaitable[bytes]]
"""Serves a ScoreGroup call: a serialised group and its context. An error ends in `context.abort`, which raises."""


async def answer(request: bytes, stream: StreamContext, score: ScoreGroup) -> None:
    """Answers every group of the request. If the call is cancelled, so is the scoring of its groups.

    Raises InvalidGroupError and GroupTooLargeError for a request that is no ScoreGroups request.
    """
    calls = wire_groups.parse_calls(request)
    metadata = [(key, value) for key, value in stream.invocation_metadata() or () if key not in TRACE_KEYS]
    answers = _Answers(len(calls))
    async with asyncio.TaskGroup() as tasks:
        for index, (group, trace) in enumerate(calls):
            tasks.create_task(_answer_one(index, group, _GroupContext(stream, metadata, trace), score, answers))
        async for message in answers.messages():
            await stream.write(message)


async def _answer_one(index: int, group: bytes, call: _GroupContext, score: ScoreGroup, answers: _Answers) -> None:
    try:
        answers.add(wire_groups.scored(index, await score(group, call)))
    except _AbortedError as error:
        answers.add(wire_groups.failed(index, error.failure))


class _Answers:
    """The answers to a number of groups, in the order in which they become ready."""

    def __init__(self, count: int):
        self._missing = count
        self._ready: list[Answer] = []
        self._is_ready = asyncio.Event()

    def add(self, answer: Answer) -> None:
        self._ready.append(answer)
        self._is_ready.set()

    async def messages(self) -> AsyncIterator[bytes]:
        """The serialised messages of the stream. Ends after the last answer."""
        while self._missing:
            await self._is_ready.wait()
            self._is_ready.clear()
            ready, self._ready = self._ready, []
            self._missing -= len(ready)
            for message in wire_groups.encode_answers(ready):
                yield message


class _AbortedError(Exception):
    """The call of a group has ended with this failure."""

    def __init__(self, failure: Failure):
        super().__init__(failure.details)
        self.failure = failure


class _GroupContext:
    """The context of one group's call, in that of the stream."""

    __slots__ = ("_metadata", "_stream")

    def __init__(self, stream: StreamContext, metadata: list[tuple[str, Any]], trace: Metadata):
        self._stream = stream
        self._metadata: Iterable[tuple[str, Any]] = [*metadata, *trace] if trace else metadata

    def invocation_metadata(self) -> Any:
        return self._metadata

    def peer(self) -> str:
        return self._stream.peer()

    def time_remaining(self) -> float | None:
        return self._stream.time_remaining()

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any, /) -> NoReturn:
        raise _AbortedError(Failure(code, details, tuple(trailing_metadata)))
