"""The errors of the reward service and its client, and the one table between them and gRPC's codes.

    RewardServerError
    ├── ConfigError (ValueError)              a configuration that cannot be used, by field
    ├── ScorerLoadError (RuntimeError)        a scorer that cannot be loaded: import, model path, option
    ├── InvalidGroupError (ValueError)        the caller's group: malformed, unknown scorer, missing column
    │   └── GroupTooLargeError                a group beyond a limit of the server; never retried
    ├── WireVersionError (RuntimeError)       client and server speak different versions of the wire
    ├── CredentialsError (PermissionError)    missing or wrong credentials
    ├── OverloadedError (RuntimeError)        the server is full for now
    ├── UnavailableError (ConnectionError)    no server answers, or it is draining
    ├── DeadlineError (TimeoutError)          no answer before the deadline
    ├── CallError (RuntimeError)              any other end of a call; carries gRPC's code
    └── ScoringFailedError (RuntimeError)     failed scores that the failure policy does not accept

Each error also inherits the standard type that it refines, so that `except TimeoutError` works.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc


class RewardServerError(Exception):
    """The root of all errors that this package raises on purpose."""


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
    """The caller sends no credentials, or the server refuses them."""


class OverloadedError(RewardServerError, RuntimeError):
    """The server is full for now. The call may be retried, after `retry_after_s` seconds if the server knows that.

    `reason` is a label of the server's counters: "full", "share" (of the caller), "quota" (of the token) or "cohorts"
    (too many groups are being gathered); empty for one that another process has counted.
    """

    def __init__(self, message: str = "", retry_after_s: float | None = None, reason: str = "full"):
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason


class UnavailableError(RewardServerError, ConnectionError):
    """No server answers at the endpoint, or the server there is draining."""


class DeadlineError(RewardServerError, TimeoutError):
    """No answer before the deadline."""


class CallError(RewardServerError, RuntimeError):
    """A call that ended with a code that the table does not have; `code` is that code."""

    def __init__(self, message: str, code: grpc.StatusCode = grpc.StatusCode.UNKNOWN):
        super().__init__(message)
        self.code = code


class ScoringFailedError(RewardServerError, RuntimeError):
    """Scores have failed, and the failure policy does not accept that."""


CALLERS_FAULTS = (InvalidGroupError, GroupTooLargeError, WireVersionError, CredentialsError)
"""Errors of a call that only the caller can mend, and that every later group would have too."""


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
"""The service reads it from error to code, the client from code to error; the client also reads what is retried."""


def code_of(error: BaseException) -> grpc.StatusCode:
    """The code for an error, by the most specific row; INTERNAL for an error that is not ours."""
    matches = [row for row in TABLE if type(error) is row.error] or [r for r in TABLE if isinstance(error, r.error)]
    return matches[0].code if matches else grpc.StatusCode.INTERNAL


def is_too_large(code: grpc.StatusCode, message: str) -> bool:
    """Whether the transport refused a message for its size. gRPC gives that the same code as a busy server."""
    return code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in message.lower()


def error_of(code: grpc.StatusCode, message: str) -> RewardServerError:
    """The error for a code, with this message."""
    if is_too_large(code, message):
        return GroupTooLargeError(f"{message}: raise limits.max_group_bytes at the server, or send fewer columns")
    for row in TABLE:
        if row.code is code:
            return row.error(message)
    return CallError(message, code)


def retryable_codes() -> list[str]:
    """The names of the codes that a client retries."""
    return [row.code.name for row in TABLE if row.retryable]
