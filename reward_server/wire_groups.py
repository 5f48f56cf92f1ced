"""Translates several groups in one message, and their answers: the messages of ScoreGroups.

Owns the fields of these messages. Groups and scores are serialised already, and `wire` translates them; see the twins
at the end of the .proto. Knows nothing of channels or servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from reward_server.errors import GroupTooLargeError, InvalidGroupError
from reward_server.v1 import reward_pb2 as pb

MAX_GROUPS = 256
"""Most groups in a call. Their tasks begin in one turn of the server's event loop, of some ten milliseconds."""

PUSHBACK_KEY = "grpc-retry-pushback-ms"

Metadata = tuple[tuple[str, str], ...]

Answer = pb.SerializedGroupAnswer
"""The answer to one group, ready to be sent."""

# Answers of a message together. Clients that are not ours take messages of up to 4 MiB by default.
_MESSAGE_BYTES = 1 << 20

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Failure:
    """How the call of a group ended: a code that is not OK, its details, and its trailing metadata."""

    code: grpc.StatusCode
    details: str
    trailers: Metadata = ()


# ------------------------------------------------------------------------------------------------------------ requests


def encode_calls(calls: Iterable[tuple[bytes, Metadata]]) -> pb.SerializedScoreGroupsRequest:
    """Serialised groups, each with the metadata of its trace, as a request."""
    return pb.SerializedScoreGroupsRequest(
        calls=[pb.SerializedGroupCall(group=group, **dict(trace)) for group, trace in calls]
    )


def parse_calls(data: bytes) -> list[tuple[bytes, Metadata]]:
    """The serialised groups of a request, each with the metadata of its trace.

    Raises InvalidGroupError if it is no such request or holds no group, and GroupTooLargeError for too many.
    """
    try:
        calls = pb.SerializedScoreGroupsRequest.FromString(data).calls
    except DecodeError as error:
        raise InvalidGroupError(f"the request is no ScoreGroupsRequest: {error}") from error
    if not calls:
        raise InvalidGroupError("a call needs at least one group; this request has none")
    if len(calls) > MAX_GROUPS:
        raise GroupTooLargeError(
            f"the call brings {len(calls)} groups and this server takes {MAX_GROUPS} at once: send several calls"
        )
    return [(call.group, _trace(call)) for call in calls]


def _trace(call: pb.SerializedGroupCall) -> Metadata:
    if not call.traceparent:
        return ()
    own = ("traceparent", call.traceparent)
    return (own, ("tracestate", call.tracestate)) if call.tracestate else (own,)


# ------------------------------------------------------------------------------------------------------------- answers


def scored(index: int, response: bytes) -> Answer:
    """A serialised ScoreGroupResponse as the answer to group number `index`."""
    return Answer(index=index, scores=response)


def failed(index: int, failure: Failure) -> Answer:
    """A failure as the answer to group number `index`."""
    own = pb.GroupFailure(code=failure.code.value[0], message=failure.details)
    for key, value in failure.trailers:
        if key == PUSHBACK_KEY:
            own.pushback_ms = int(value)
    return Answer(index=index, failure=own)


def encode_answers(answers: Sequence[Answer]) -> Iterator[bytes]:
    """The serialised messages that carry these answers; several only where they are long."""
    part: list[Answer] = []
    size = 0
    for answer in answers:
        if part and size + len(answer.scores) > _MESSAGE_BYTES:
            yield _message(part)
            part, size = [], 0
        part.append(answer)
        size += len(answer.scores)
    yield _message(part)


def _message(answers: Sequence[Answer]) -> bytes:
    return pb.SerializedScoreGroupsResponse(answers=answers).SerializeToString()


def decode_answer(answer: pb.GroupAnswer) -> pb.ScoreGroupResponse | Failure:
    """What an answer says of its group: the response, or the failure."""
    if answer.HasField("scores"):
        return answer.scores
    failure = answer.failure
    code = _CODES.get(failure.code, grpc.StatusCode.UNKNOWN)
    if code is grpc.StatusCode.OK:  # an outcome that only later servers know
        return Failure(grpc.StatusCode.UNKNOWN, "the answer holds neither scores nor a failure")
    trailers = ((PUSHBACK_KEY, str(failure.pushback_ms)),) if failure.HasField("pushback_ms") else ()
    return Failure(code, failure.message, trailers)
