"""A model in an engine of its own, behind HTTP: one POST of JSON, tried again while that can help.

Owns the pooled connections, the API key, the retries inside a deadline, and the kinds of failure. Knows nothing of what
is asked or answered: `endpoint` and `judge` do. The key is read from the environment or a file, goes into the
Authorization header and nowhere else: no log, no digest, no error text.

    EngineError                  `status` is what a score is that it cost: FAILED, unless said otherwise
    ├── UnreachableError         no connection, or one that broke; 502, 504                   retried
    ├── BusyError                429, 503, 529; the engine may say when to come back          retried
    ├── BrokenError              500 and the rest of 5xx, 408                                 retried
    ├── MisconfiguredError       401, 403, 404, 405, a redirect, a certificate: URL, model or key are wrong
    ├── RefusedError             400, 413, 422 and the rest: the engine does not take what was sent
    ├── AnswerError              an answer that is not what the API promises
    └── LateError                no answer before the deadline: TIMEOUT
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import re
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import ExecutorKind, Scorer, ScorerOptions
from reward_server.types import Status

log = logging.getLogger("reward_server")

# Full jitter: uniform between 0 and a bound that doubles (AWS Architecture Blog, "Exponential Backoff And Jitter").
_FIRST_BACKOFF_S = 0.25
_LONGEST_BACKOFF_S = 8.0
_CONNECT_S = 5.0
# uvicorn, which vLLM runs on, closes an idle connection after 5 s: one that is used just then breaks.
_KEEPALIVE_S = 4.0
# The service's own limit would end a whole group and try each completion again alone. This ends only what is late.
_SHARE_OF_TIMEOUT = 0.95
_LONGEST_EXCERPT = 200


# -------------------------------------------------------------------------------------------------------------- errors


class EngineError(Exception):
    """A request that brought nothing; the message names the URL and the reason."""

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


# ------------------------------------------------------------------------------------------------------------- options


class EngineOptions(ScorerOptions):
    """Where an engine is, and the key for it."""

    url: str = Field(description="Base URL of the engine's API, such as http://vllm:8000 or https://host/v1.")
    api_key_env: str | None = Field(
        None, description="Environment variable of the server that holds the API key, sent as a bearer token."
    )
    api_key_file: str | None = Field(
        None,
        description="File that holds the API key instead, looked up in the configuration's folder; read for each "
        "request, so that it may be rotated.",
    )

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "the URL carries more than scheme, host, port and path, which would show in logs; put a key into "
                "api_key_env or api_key_file"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # or it raises, beyond 65535
            raise ValueError(f"{url!r:.80} is no http:// or https:// URL; write it as http://host:8000")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_key(self) -> EngineOptions:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file exclude each other: set one")
        return self


class ApiKey:
    """The key of an engine, if it asks for one."""

    def __init__(self, options: EngineOptions):
        """Raises ScorerLoadError, which names variable or file, if there is none in it."""
        self._options = options
        self._key = self._read()

    def headers(self) -> dict[str, str]:
        """A file that cannot be used now leaves the key of before: it may be half written."""
        if self._options.api_key_file is not None:
            with contextlib.suppress(ScorerLoadError):
                self._key = self._read()
        return {"authorization": f"Bearer {self._key}"} if self._key else {}

    def redacted(self, text: str) -> str:
        """The text without the key, since engines repeat what they refuse."""
        return text.replace(self._key, "…") if self._key else text

    def _read(self) -> str:
        options = self._options
        if options.api_key_env is not None:
            where, key = f"api_key_env: {options.api_key_env}", os.environ.get(options.api_key_env, "")
        elif options.api_key_file is not None:
            path = options.base_dir / Path(options.api_key_file).expanduser()
            where, key = f"api_key_file: {path}", _content(path, options.name)
        else:
            return ""
        if not re.fullmatch(r"[!-~]+", key.strip()):
            raise ScorerLoadError(f"scorer {options.name!r}: {where} holds no key (printable ASCII without spaces)")
        return key.strip()


def _content(path: Path, name: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ScorerLoadError(f"scorer {name!r}: api_key_file: cannot read {path}: {reason}") from error


# ------------------------------------------------------------------------------------------------------------- engine


class Engine:
    """The connections to one engine. Made and used on one event loop."""

    def __init__(self, options: EngineOptions):
        """Connects to nobody yet. Raises ScorerLoadError if httpx or the key is missing."""
        try:
            import httpx  # noqa: PLC0415 - only where it runs
        except ImportError as error:
            raise ScorerLoadError(
                f"type {options.type} needs httpx ({error}): pip install 'grpo-plugin[server]'"
            ) from error
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it reports every request at INFO
        self._url = options.url
        self._key = ApiKey(options)
        self._httpx: Any = httpx
        # Plain HTTP gets a context that trusts nobody: loading the trusted certificates takes a tenth of a second.
        trusted: Any = True if options.url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # How many run at once is the scorers' to say, how long each may take the deadline's.
        self._client = httpx.AsyncClient(
            verify=trusted,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=_KEEPALIVE_S),
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def post(self, path: str, body: Mapping[str, Any], deadline: float) -> Any:
        """What the engine answers, parsed. `deadline` is a time of the running loop's clock. Raises EngineError."""
        url = f"{self._url}{path}"
        # A lone surrogate, as truncated output decodes to, is no UTF-8: it becomes a question mark.
        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        last: EngineError | None = None
        try:
            async with asyncio.timeout_at(deadline):
                for attempt in itertools.count():
                    try:
                        return await self._post_once(url, content)
                    except EngineError as error:
                        last = error
                    await asyncio.sleep(_pause_s(last, attempt, deadline))
        except TimeoutError:
            reason = f"; before that, {last}" if last else ""
            raise LateError(f"{url}: no answer before the deadline{reason}") from last
        raise AssertionError("a deadline ends every loop")

    async def _post_once(self, url: str, content: bytes) -> Any:
        headers = {"content-type": "application/json", **self._key.headers()}
        try:
            response = await self._client.post(url, content=content, headers=headers)
        except self._httpx.TransportError as error:
            reason = self._key.redacted(_reason(error))
            kind = MisconfiguredError if "CERTIFICATE_VERIFY_FAILED" in reason else UnreachableError
            raise kind(f"{url}: {reason}") from error
        except self._httpx.HTTPError as error:
            raise AnswerError(f"{url}: {type(error).__name__}") from error
        if not response.is_success:
            raise self._failure(url, response)
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise AnswerError(f"{url}: the answer is not JSON: {self._excerpt(response)}") from error

    def _failure(self, url: str, response: Any) -> EngineError:
        code = response.status_code
        what = f"{url}: {code} {response.reason_phrase}".rstrip()
        if code in (401, 403):  # its body may repeat a part of the key
            return MisconfiguredError(f"{what}: the engine refuses the key of api_key_env or api_key_file")
        what = f"{what}: {self._excerpt(response)}"
        if code in (404, 405) or 300 <= code < 400:
            return MisconfiguredError(f"{what}; see url, and model if there is one")
        if code in (429, 503, 529):
            return BusyError(what, retry_after_s(response.headers))
        if code in (502, 504):
            return UnreachableError(what)
        return (BrokenError if code >= 500 or code == 408 else RefusedError)(what)

    def _excerpt(self, response: Any) -> str:
        """The engine's own words: OpenAI's and vLLM's error.message, TEI's error, or the beginning of what it said."""
        said: Any = response.text
        with contextlib.suppress(ValueError, RecursionError):
            said = json.loads(said)
        for key in ("error", "message"):
            if isinstance(said, dict) and key in said:
                said = said[key]
        return self._key.redacted(" ".join(str(said).split()))[:_LONGEST_EXCERPT]


def _reason(error: BaseException) -> str:
    """What the system said at the bottom of an HTTP client's errors, such as: Connection refused."""
    said = str(error) or type(error).__name__
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
        if isinstance(error, OSError) and error.strerror:
            said = error.strerror
    return said


def _pause_s(error: EngineError, attempt: int, deadline: float) -> float:
    """How long to wait before the next attempt. Raises the error if none is worth it, or the deadline is nearer."""
    if not error.is_retryable:
        raise error
    backoff_s = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**attempt) * random.random()
    asked_s = error.retry_after_s
    pause_s = backoff_s if asked_s is None else asked_s + min(backoff_s, 1.0)
    if asyncio.get_running_loop().time() + pause_s < deadline:
        return pause_s
    waits = "" if asked_s is None else f", and asks to come back in {asked_s:g} s"
    raise type(error)(f"{error}{waits}; given up at attempt {attempt + 1}, since the deadline is nearer") from error


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


# ------------------------------------------------------------------------------------------------------------- scorers

OptionsT = TypeVar("OptionsT", bound=EngineOptions)


class EngineScorer(Scorer[OptionsT]):
    """What scorers share that ask an engine: they wait on the event loop, and end what is late by themselves."""

    place = ExecutorKind.LOOP
    engine: Engine

    def load(self) -> None:
        self.engine = Engine(self.options)

    async def close(self) -> None:
        await self.engine.close()

    def deadline(self) -> float:
        """When a group that begins now is to be answered, on the running loop's clock."""
        return asyncio.get_running_loop().time() + _SHARE_OF_TIMEOUT * self.options.timeout_s
