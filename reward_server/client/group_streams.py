"""A ScoreGroups call at the client: one attempt of each of several groups, in one stream.

Owns the stream, how groups are divided into streams, and what a server that does not have the call makes of it. An
attempt looks to `attempts` as gRPC's own futures do; whether a group is sent again is decided there, and it then goes
alone.

    stream = GroupStream(open_stream, send_alone, offer)
    sends = [stream.sender(request) for request in requests]       of each group's Attempts; nothing is sent yet
    stream.begin(timeout_s)

A stream ends with its last group: cancelling some of its groups leaves the others, and cancelling all of them ends it,
on the server too.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc

from reward_server import wire_groups
from reward_server.client.proxies import code_of
from reward_server.types import Limits
from reward_server.v1 import reward_pb2 as pb
from reward_server.wire_groups import Failure, Metadata

OpenStream = Callable[[pb.SerializedScoreGroupsRequest, float], Any]
"""Sends a request with so many seconds until its deadline, and returns gRPC's stream of responses."""

SendAlone = Callable[[pb.ScoreGroupRequest, float, Metadata], Any]
"""Sends a group by ScoreGroup, with the metadata of its trace, and returns gRPC's future."""

# Beyond this a stream saves little more for a group, and its groups are spread less well over replicas.
_MOST_GROUPS = 32
# A server works on one message while the next one comes, and every server and proxy takes messages of this length.
_MOST_BYTES = 2 << 20
# A server that does not have the call may be replaced by one that has it.
_ASK_AGAIN_S = 60.0

_LEFT_OUT = Failure(grpc.StatusCode.UNAVAILABLE, "the stream ended without an answer to this group")
_CLOSED = Failure(grpc.StatusCode.CANCELLED, "Channel closed!")


class Offer:
    """Whether the server has the call, as far as this client knows."""

    def __init__(self) -> None:
        self._refused_at: float | None = None

    def refuse(self) -> None:
        """Notes that a server did not have it."""
        self._refused_at = time.monotonic()

    def most_groups(self, limits: Limits | None) -> int:
        """Most groups to send in a call. `limits` are those that the server told, None if it was not asked."""
        if self._refused_at is not None and time.monotonic() - self._refused_at < _ASK_AGAIN_S:
            return 1
        return _MOST_GROUPS if limits is None else min(_MOST_GROUPS, max(limits.max_groups, 1))


def parts(sizes: Mapping[int, int], replicas: int, most: int) -> Iterator[Sequence[int]]:
    """Divides groups, given as the lengths in bytes by their number, into calls of about equal numbers of groups.

    Each of the replicas gets as many calls as the others if there are groups enough; no call has more than `most`
    groups, nor more than `_MOST_BYTES` unless it is of one group.
    """
    groups = list(sizes)
    calls = max(_ceil(len(groups), most), _ceil(sum(sizes.values()), _MOST_BYTES))
    calls = min(len(groups), _ceil(calls, replicas) * replicas)
    for number in range(calls):
        yield from _within_bytes(groups[number * len(groups) // calls : (number + 1) * len(groups) // calls], sizes)


def _ceil(count: int, by: int) -> int:
    return -(-count // by)


def _within_bytes(groups: Sequence[int], sizes: Mapping[int, int]) -> Iterator[Sequence[int]]:
    part: list[int] = []
    size = 0
    for group in groups:
        if part and size + sizes[group] > _MOST_BYTES:
            yield part
            part, size = [], 0
        part.append(group)
        size += sizes[group]
    yield part


class GroupStream:
    """One ScoreGroups call, until each of its groups has an answer or has failed."""

    def __init__(self, open_stream: OpenStream, send_alone: SendAlone, offer: Offer):
        self._open_stream = open_stream
        self._send_alone = send_alone
        self._offer = offer
        self._calls: list[GroupCall] = []
        self._lock = threading.Lock()
        self._waiting = 0
        self._deadline = 0.0
        self._stream: Any = None

    def sender(self, group: pb.ScoreGroupRequest) -> Callable[[float, Metadata], Any]:
        """Sends the attempts of a group: the first one in the stream, once that begins, and later ones alone."""
        is_first = True

        def send(left_s: float, trace: Metadata) -> Any:
            nonlocal is_first
            if not is_first:
                return self._send_alone(group, left_s, trace)
            is_first = False
            self._calls.append(GroupCall(group, trace, self._leave))
            return self._calls[-1]

        return send

    def begin(self, timeout_s: float) -> None:
        """Sends the groups. A thread of the stream's own reads the answers."""
        self._deadline = time.monotonic() + timeout_s
        self._waiting = len(self._calls)
        request = wire_groups.encode_calls([(call.group.SerializeToString(), call.trace) for call in self._calls])
        try:
            self._stream = self._open_stream(request, timeout_s)
        except ValueError:  # gRPC raises it for a channel that was closed meanwhile
            self._end_all(_CLOSED)
            return
        threading.Thread(target=self._read, name="reward client stream", daemon=True).start()

    def _read(self) -> None:
        end = _LEFT_OUT
        try:
            for message in self._stream:
                for answer in message.answers:
                    self._answered(answer)
        except grpc.RpcError as error:
            end = failure_of(error)
        finally:
            if end.code is grpc.StatusCode.UNIMPLEMENTED:
                self._offer.refuse()
                self._send_all_alone()
            else:
                self._end_all(end)

    def _answered(self, answer: pb.GroupAnswer) -> None:
        if answer.index < len(self._calls):
            self._calls[answer.index].end(wire_groups.decode_answer(answer))

    def _end_all(self, failure: Failure) -> None:
        for call in self._calls:
            call.end(failure)

    def _send_all_alone(self) -> None:
        for call in self._calls:
            left_s = max(0.0, self._deadline - time.monotonic())
            call.go_on(functools.partial(self._send_alone, call.group, left_s, call.trace))

    def _leave(self, has_answer: bool) -> None:
        """One group less waits for its answer. When the last ones are given up, the call ends."""
        with self._lock:
            self._waiting -= 1
            is_given_up = not self._waiting and not has_answer
        if is_given_up and self._stream is not None:
            self._stream.cancel()


class GroupCall(grpc.RpcError):
    """The attempt of one group, with those methods of gRPC's futures that are used. If it failed, it is the error."""

    def __init__(self, group: pb.ScoreGroupRequest, trace: Metadata, leave: Callable[[bool], None]):
        super().__init__()
        self.group = group
        self.trace = trace
        self._leave = leave
        self._lock = threading.Lock()
        self._is_over = False
        self._outcome: pb.ScoreGroupResponse | Failure = _LEFT_OUT
        self._callbacks: list[Callable[[Any], None]] = []
        self._alone: Any = None

    # These are called once the call has ended.

    def code(self) -> grpc.StatusCode:
        return self._outcome.code if isinstance(self._outcome, Failure) else grpc.StatusCode.OK

    def details(self) -> str:
        return self._outcome.details if isinstance(self._outcome, Failure) else ""

    def trailing_metadata(self) -> Any:
        return self._outcome.trailers if isinstance(self._outcome, Failure) else ()

    def result(self) -> Any:
        """The response of a call that ended with OK."""
        return self._outcome

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        with self._lock:
            if not self._is_over:
                self._callbacks.append(callback)
                return
        callback(self)

    def cancel(self) -> None:
        """Gives the answer up. No callback is called after that."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
        if self._alone is None:
            self._leave(False)
        else:
            self._alone.cancel()

    def end(self, outcome: pb.ScoreGroupResponse | Failure) -> None:
        """Ends the call with this outcome, once: what comes later is dropped."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            self._outcome = outcome
        self._leave(True)
        for callback in self._callbacks:
            callback(self)

    def go_on(self, send: Callable[[], Any]) -> None:
        """Sends the group alone, whose end becomes that of this call."""
        with self._lock:
            if self._is_over:
                return
            try:
                self._alone = send()
            except ValueError:
                self._alone = None
        if self._alone is None:
            self.end(_CLOSED)
        else:
            self._alone.add_done_callback(
                lambda call: self.end(call.result() if call.code() is grpc.StatusCode.OK else failure_of(call))
            )


def failure_of(ended: Any) -> Failure:
    """How a call of gRPC failed."""
    trailers = tuple((key, value) for key, value in ended.trailing_metadata() or ())
    return Failure(code_of(ended), ended.details() or "", trailers)
