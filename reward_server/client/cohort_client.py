"""`CohortClient`: scores completions that are sent one by one, each from any process, with the rest of their group.

Owns the choice of the replica at which the samples of a group meet, and the calls of single samples. `retries` decides
whether a call is sent again, `replicas` knows the addresses.

    client = CohortClient("localhost:50051")
    pending = client.submit(Sample(prompt, Completion(text), of=8, index=3, run_id="run", group_id="step 7, row 2"))
    scores = pending.result().scores                    a concurrent.futures.Future; GroupScores with G = 1

Every client that has the same addresses sends the samples of a group to the same replica. When that is gone, each of
them finds out for itself and goes on to the next one, where they meet again.
"""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Self

import grpc

from reward_server import errors, wire
from reward_server.client.attempts import Attempts
from reward_server.client.base import BaseClient
from reward_server.client.credentials import channel
from reward_server.client.proxies import code_of
from reward_server.client.replicas import Replica
from reward_server.client.retries import Retries
from reward_server.client.targets import channel_options
from reward_server.client.timers import Timers
from reward_server.observability import tracing
from reward_server.rendezvous import ranked
from reward_server.types import Sample, SampleScores
from reward_server.v1 import reward_pb2_grpc as pb_grpc

# A connection that breaks once does not send a sample away from its siblings; a replica that is gone fails twice.
_TRIES = 2
# Of a call's time, the part in which the siblings of its sample may come; the rest is for scoring them.
_GATHERING = 0.5


class CohortClient(BaseClient):
    """A client for threads, blocking code and, by `asyncio.wrap_future`, asyncio.

    It may be made before a fork: it connects at its first use, and a forked child makes connections of its own. The
    arguments are those of RewardClient; there are no hedges.
    """

    def _set_up(self) -> None:
        self._sessions: dict[int, _Session] = {}  # by process ID: a forked child leaves its parent's connections alone

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, sample: Sample, *, timeout_s: float | None = None) -> Future[SampleScores]:
        """Sends a sample and returns at once. The future gets its scores or one of our errors.

        A sample without `gather_s` waits for its siblings for half of the time-out. Cancelling the future cancels the
        call. Raises InvalidGroupError for a sample that cannot be sent, and at the first use ConfigError for an
        endpoint whose name cannot be resolved.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        gather_s = _GATHERING * timeout_s if sample.gather_s is None else sample.gather_s
        request = _request(dataclasses.replace(sample, gather_s=gather_s))
        session, future = self._session(), Future[SampleScores]()
        session.replicas.current()
        names = {"run_id": sample.run_id, "step": sample.step, "group_id": sample.group_id}
        span, trace = tracing.start_client_span("reward.score", names)
        route = _Route(session, sample)
        attempts = Attempts(
            lambda remaining_s: route.send(request, remaining_s, self.metadata() + trace),
            session.retries,
            session.timers,
            timeout_s,
            lambda call, failures: self._finish(call, failures, sample, timeout_s, future),
        )
        attempts.start()
        future.add_done_callback(lambda f: attempts.cancel() if f.cancelled() else None)
        future.add_done_callback(lambda f: tracing.end_span(span, None if f.cancelled() else f.exception()))
        return future

    def score(self, sample: Sample, *, timeout_s: float | None = None) -> SampleScores:
        """Sends a sample and waits for its scores. Raises one of our errors."""
        return self.submit(sample, timeout_s=timeout_s).result()

    def close(self) -> None:
        """Ends the calls in flight and the connections. A client that is used after that connects again."""
        session = self._sessions.pop(os.getpid(), None)
        if session is not None:
            session.close()

    def _finish(
        self, call: Any, failures: Sequence[Any], sample: Sample, timeout_s: float, future: Future[SampleScores]
    ) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if call is None:
                raise errors.CallError(f"the call to {self.endpoint} was cancelled", grpc.StatusCode.CANCELLED)
            if call.code() is not grpc.StatusCode.OK:
                raise self.error_of(call, timeout_s, failures) from call
            future.set_result(self._decoded(call.result(), sample))
        except Exception as error:
            future.set_exception(error)

    def _decoded(self, response: wire.pb.ScoreCompletionResponse, sample: Sample) -> SampleScores:
        answer = wire.decode_sample_scores(response)
        lengths = {len(scorer.scores) for scorer in answer.scores.scorers}
        if answer.scores.group_id != sample.group_id or lengths != {1}:
            raise errors.CallError(
                f"the server at {self.endpoint} answered a sample of group {sample.group_id!r} with scores for group "
                f"{answer.scores.group_id!r} of {sorted(lengths)}"
            )
        return answer

    def _session(self) -> _Session:
        if (pid := os.getpid()) not in self._sessions:
            self._sessions.setdefault(pid, _Session(self))
        return self._sessions[pid]


class _Session:
    """The state of a client in one process: a channel a replica, each of which connects at its first call."""

    def __init__(self, client: CohortClient):
        self.replicas = client.replicas()
        self.retries = Retries()
        self.timers = Timers()
        self._channels: dict[str, grpc.Channel] = {}
        self._is_closed = False

    def stub(self, replica: Replica) -> pb_grpc.RewardServiceStub:
        """Raises ValueError for a session that is closed, as gRPC does for a channel."""
        if self._is_closed:
            raise ValueError("the client is closed")
        if replica.target not in self._channels:
            opened = channel(replica.target, channel_options(replica.target), replica.tls)
            if self._channels.setdefault(replica.target, opened) is not opened:
                opened.close()  # two threads came here
        return pb_grpc.RewardServiceStub(self._channels[replica.target])

    def close(self) -> None:
        self._is_closed = True
        for opened in self._channels.values():
            opened.close()
        self.timers.hurry()


class _Route:
    """The replicas that a sample goes to, one after another: those that its group prefers, in that order."""

    def __init__(self, session: _Session, sample: Sample):
        self._session = session
        self._names = sample.run_id, sample.group_id or uuid.uuid4().hex
        self._failures = 0

    def send(self, request: wire.pb.ScoreCompletionRequest, remaining_s: float, metadata: Any) -> Any:
        """Sends the request to the replica whose turn it is, and returns gRPC's future."""
        replicas = self._session.replicas.current()
        order = ranked(replicas, *self._names)
        stub = self._session.stub(replicas[order[self._failures // _TRIES % len(order)]])
        call = stub.ScoreCompletion.future(request, timeout=remaining_s, metadata=metadata)
        call.add_done_callback(self._ended)
        return call

    def _ended(self, call: Any) -> None:
        """Only a replica that is not there makes way for the next one."""
        if code_of(call) is grpc.StatusCode.UNAVAILABLE:
            self._failures += 1
            self._session.replicas.refresh()


def _request(sample: Sample) -> wire.pb.ScoreCompletionRequest:
    try:
        return wire.encode_sample(sample)
    except errors.InvalidGroupError:
        raise
    except (TypeError, ValueError) as error:  # of the message's own fields
        raise errors.InvalidGroupError(
            f"index {sample.index} of {sample.of} of group {sample.group_id!r} cannot be sent: {error}"
        ) from error
