"""A model in an engine of its own, behind HTTP: one POST of JSON, which is retried while a retry can help.

Owns the pooled connections, the API key, and the retries inside a deadline. The kinds of failure are in
`engine_errors`. Knows nothing of what is asked or answered: `endpoint` and `judge` do. The key is read from the
environment or a file and goes into the Authorization header only: no log, no digest and no error text shows it.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import ExecutorKind, Scorer, ScorerOptions
from reward_server.scorers.engine_errors import (
    AnswerError,
    EngineError,
    LateError,
    MisconfiguredError,
    UnreachableError,
    error_in_answer,
    error_of_code,
    words_of,
)

# Full jitter: uniform between 0 and a bound that doubles (AWS Architecture Blog, "Exponential Backoff And Jitter").
_FIRST_BACKOFF_S = 0.25
_LONGEST_BACKOFF_S = 8.0
_CONNECT_S = 5.0
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# uvicorn, which vLLM runs on, closes an idle connection after 5 s; a request that uses it at that moment fails.
_KEEPALIVE_S = 4.0
# The service's own limit would end the whole group and try each completion again alone. With this earlier deadline only
# the completions whose requests are late get TIMEOUT.
_SHARE_OF_TIMEOUT = 0.95
_LONGEST_EXCERPT = 200


# ------------------------------------------------------------------------------------------------------------- options


class EngineOptions(ScorerOptions):
    """Where an engine is, and which key it asks for."""

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
        """The header with the key. A file that cannot be read now may be half written: the last key stays in use."""
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
        """Opens no connection yet. Raises ScorerLoadError if httpx or the key is missing."""
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
        # The scorers limit how many requests run at once, and the deadline limits how long each may take.
        self._client = httpx.AsyncClient(
            verify=trusted,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=_KEEPALIVE_S),
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            mounts={f"all://{host}": None for host in _LOOPBACK},  # http_proxy and its like are not for this machine
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
            answer = response.json()
        except (ValueError, RecursionError) as error:
            raise AnswerError(f"{url}: the answer is not JSON: {self._words(response.text)}") from error
        if (failure := error_in_answer(answer, url, response.headers, self._words)) is not None:
            raise failure
        return answer

    def _failure(self, url: str, response: Any) -> EngineError:
        code = response.status_code
        what = f"{url}: {code} {response.reason_phrase}".rstrip()
        if code in (401, 403):  # the body may repeat a part of the key
            return MisconfiguredError(f"{what}: the engine refuses the key of api_key_env or api_key_file")
        what = f"{what}: {self._words(response.text)}"
        if code in (404, 405) or 300 <= code < 400:
            return MisconfiguredError(f"{what}; see url, and model if there is one")
        return error_of_code(code, what, response.headers)

    def _words(self, body: Any) -> str:
        return self._key.redacted(words_of(body))[:_LONGEST_EXCERPT]


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


# ------------------------------------------------------------------------------------------------------------- scorers

OptionsT = TypeVar("OptionsT", bound=EngineOptions)


class EngineScorer(Scorer[OptionsT]):
    """The base of scorers that ask an engine: they wait on the event loop, and end late requests by themselves."""

    place = ExecutorKind.LOOP
    engine: Engine

    def load(self) -> None:
        self.engine = Engine(self.options)

    async def close(self) -> None:
        await self.engine.close()

    def deadline(self) -> float:
        """The time by which a group that begins now must be answered, on the running loop's clock."""
        return asyncio.get_running_loop().time() + _SHARE_OF_TIMEOUT * self.options.timeout_s
