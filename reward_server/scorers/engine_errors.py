"""The ways in which a request to an engine fails, and how an HTTP answer that failed is told apart.

Owns the kinds of failure, which status code or error body is of which kind, and what the engine said in words. Knows
nothing of connections: it is handed an answer's code, body and headers.

    EngineError                  `status` is the status of a score that the request was for: FAILED, unless said below
    ├── UnreachableError         no connection, or one that broke; 502, 504                   retried
    ├── BusyError                429, 503, 529; the engine may say when to come back          retried
    ├── BrokenError              500 and the rest of 5xx, 408                                 retried
    ├── MisconfiguredError       401, 403, 404, 405, a redirect, a certificate: URL, model or key are wrong
    ├── RefusedError             400, 413, 422 and the rest: the engine does not take what was sent
    ├── AnswerError              an answer that is not what the API promises
    └── LateError                no answer before the deadline: TIMEOUT
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar

from reward_server.types import Status

# Words in `type` or `code` of an error body that came with HTTP 200: OpenAI's, Anthropic's and TEI's names.
_BUSY_WORDS = ("rate_limit", "ratelimit", "overloaded", "unavailable", "unhealthy", "quota_exceeded")
_BROKEN_WORDS = ("server_error", "internal", "backend", "api_error", "timeout", "provider")


class EngineError(Exception):
    """A request that brought no answer; the message names the URL and the reason."""

    status: ClassVar[Status] = Status.FAILED
    is_retryable: ClassVar[bool] = False
    retry_after_s: float | None = None


class UnreachableError(EngineError):
    """Nobody answers at the URL, or the connection broke."""

    is_retryable = True


class BusyError(EngineError):
    """The engine, or the caller's quota, is full for now."""

    is_retryable = True

    def __init__(self, message: str, retry_after_s: float | None = None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BrokenError(EngineError):
    """The engine failed."""

    is_retryable = True


class MisconfiguredError(EngineError):
    """URL, model or key are wrong: no other request would fare better."""


class RefusedError(EngineError):
    """The engine does not take what was sent, such as a text beyond its context."""


class AnswerError(EngineError):
    """An answer that is not what the API promises."""


class LateError(EngineError):
    """No answer before the deadline."""

    status = Status.TIMEOUT


def error_of_code(code: int, what: str, headers: Mapping[str, str]) -> EngineError:
    """The error that an HTTP status code means; `what` is its message."""
    if code in (401, 403, 404, 405) or 300 <= code < 400:
        return MisconfiguredError(what)
    if code in (429, 503, 529):
        return BusyError(what, retry_after_s(headers))
    if code in (502, 504):
        return UnreachableError(what)
    return (BrokenError if code >= 500 or code == 408 else RefusedError)(what)


def error_in_answer(
    answer: Any, what: str, headers: Mapping[str, str], words: Callable[[Any], str]
) -> EngineError | None:
    """The error that an answer with HTTP 200 carries in its body, as gateways send it; None if it carries none.

    Its kind follows `error.code` where that is a status code (OpenRouter, LiteLLM), else the words in `error.type`,
    `error.code` or TEI's `error_type`. An error of which neither is known is not retried. `words` gives what the
    message may show of a body.
    """
    if not isinstance(answer, Mapping) or not (answer.get("error") or answer.get("object") == "error"):
        return None
    said = answer["error"] if isinstance(answer.get("error"), Mapping) else answer
    code = str(said.get("code") or said.get("status") or "")
    if code in ("401", "403"):  # the body may repeat a part of the key
        return MisconfiguredError(f"{what}: the engine answered 200 with error {code}: it refuses the key")
    message = f"{what}: the engine answered 200 with an error: {words(answer)}"
    if code.isdecimal() and 300 <= int(code) < 600:
        return error_of_code(int(code), message, headers)
    kinds = f"{said.get('type') or ''} {said.get('error_type') or ''} {code}".lower()
    if any(word in kinds for word in _BUSY_WORDS):
        return BusyError(message, retry_after_s(headers))
    return (BrokenError if any(word in kinds for word in _BROKEN_WORDS) else RefusedError)(message)


def words_of(body: Any) -> str:
    """The engine's own words: OpenAI's and vLLM's error.message, TEI's error, or the beginning of what it said."""
    said = body
    if isinstance(said, str):
        with contextlib.suppress(ValueError, RecursionError):
            said = json.loads(said)
    for key in ("error", "message"):
        if isinstance(said, Mapping) and key in said:
            said = said[key]
    return " ".join(str(said).split())


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What `retry-after-ms` (OpenAI's) or `retry-after` (RFC 9110: seconds or a date) asks for; None if neither."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    if (asked := headers.get("retry-after")) is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(asked))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    return None
