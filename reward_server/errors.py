"""The errors of the reward service and its client, and the one table between them and gRPC's codes.

    RewardServerError
    ├── ConfigError (ValueError)              a configuration that cannot be used, by field
    ├── ScorerLoadError (RuntimeError)        a scorer that cannot be built: import, model path, option
    ├── InvalidGroupError (ValueError)        the caller's group: malformed, unknown scorer, missing column
    │   └── GroupTooLargeError                beyond a limit of the server; never worth a retry
    ├── WireVersionError (RuntimeError)       client and server speak different versions of the wire
    ├── CredentialsError (PermissionError)    missing or wrong credentials
    ├── OverloadedError (RuntimeError)        the server is full for now
    ├── UnavailableError (ConnectionError)    nobody answers, or the server is draining
    ├── DeadlineError (TimeoutError)          no answer before the deadline
    ├── CallError (RuntimeError)              any other end of a call; carries gRPC's code
    └── ScoringFailedError (RuntimeError)     scores that a policy does not let pass

Each inherits the standard type that it refines, so `except TimeoutError` works too.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc


class RewardServerError(Exception):
    """Root of everything that this package raises on purpose."""


class ConfigError(RewardServerError, ValueError):
    """A configuration that cannot be used; the message names the field, the value and the way out."""


class ScorerLoadError(RewardServerError, RuntimeError):
    """A scorer that cannot be built or loaded; the message carries the user's traceback where there is one."""


class InvalidGroupError(RewardServerError, ValueError):
    """A group that the caller must change before it can be scored."""


class GroupTooLargeError(InvalidGroupError):
    """A group beyond a limit of the server; the message names size, limit and the option to change."""


class WireVersionError(RewardServerError, RuntimeError):
    """Client and server speak different versions of the wire."""


class CredentialsError(RewardServerError, PermissionError):
    """The server refuses the caller's credentials, or misses them."""


class OverloadedError(RewardServerError, RuntimeError):
    """The server is full for now; the call may be retried later, `retry_after_s` seconds if the server knows.

    `reason` is for its counters: "full", "share" (the caller's), "quota" (the token's).
    """

    def __init__(self, message: str = "", retry_after_s: float | None = None, reason: str = "full"):
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason


class UnavailableError(RewardServerError, ConnectionError):
    """Nobody answers at the endpoint, or the server there is draining."""


class DeadlineError(RewardServerError, TimeoutError):
    """No answer before the deadline."""


class CallError(RewardServerError, RuntimeError):
    """A call that ended in a way that the table does not name; `code` is gRPC's."""

    def __init__(self, message: str, code: grpc.StatusCode = grpc.StatusCode.UNKNOWN):
        super().__init__(message)
        self.code = code


class ScoringFailedError(RewardServerError, RuntimeError):
    """Scores came back that are none, and the failure policy does not let that pass."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: an error, the code it travels as, and whether a client retries it."""

    error: type[RewardServerError]
    code: grpc.StatusCode
    retryable: bool


TABLE = (
    Row(InvalidGroupError, grpc.StatusCode.INVALID_ARGUMENT, retryable=False),
    Row(GroupTooLargeError, grpc.StatusCode.OUT_OF_RANGE, retryable=False),
    Row(WireVersionError, grpc.StatusCode.FAILED_PRECONDITION, retryable=False),
    Row(WireVersionError, grpc.StatusCode.UNIMPLEMENTED, retryable=False),
    Row(CredentialsError, grpc.StatusCode.UNAUTHENTICATED, retryable=False),
    Row(CredentialsError, grpc.StatusCode.PERMISSION_DENIED, retryable=False),
    Row(OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED, retryable=True),
    Row(UnavailableError, grpc.StatusCode.UNAVAILABLE, retryable=True),
    Row(DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED, retryable=False),
)
"""Read by the service (error to code), the client (code to error) and the client's service config (what is retried)."""


def code_of(error: BaseException) -> grpc.StatusCode:
    """The code that an error travels as: the most specific row's, INTERNAL for what is not ours."""
    matches = [row for row in TABLE if type(error) is row.error] or [r for r in TABLE if isinstance(error, r.error)]
    return matches[0].code if matches else grpc.StatusCode.INTERNAL


def is_too_large(code: grpc.StatusCode, message: str) -> bool:
    """Whether the transport refused a message for its size, which has the code of a server that is busy."""
    return code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in message.lower()


def error_of(code: grpc.StatusCode, message: str) -> RewardServerError:
    """The error that a code stands for, with this message."""
    if is_too_large(code, message):
        return GroupTooLargeError(f"{message}: raise limits.max_group_bytes at the server, or send fewer columns")
    for row in TABLE:
        if row.code is code:
            return row.error(message)
    return CallError(message, code)


def retryable_codes() -> list[str]:
    """The names of the codes that a client retries, for gRPC's service config."""
    return [row.code.name for row in TABLE if row.retryable]
