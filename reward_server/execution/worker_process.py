"""The process side of a worker: loads the scorers, then scores one group after another in its main thread.

Owns the messages between server and worker, in the frames of `processes.child`. Standard output is redirected to the
server's standard error, so that user code may print.

    -> [options, …]                       <- {"descriptions": {…}} or {"load_error": …}
    -> (scorer's name, group)             <- {"scores": …}, {"raised": …} or {"invalid_group": …}, for each group
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import json
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from io import BufferedRWPair
from typing import Any

from reward_server.errors import ConfigError, InvalidGroupError, RewardServerError
from reward_server.execution.results import NoResultError, ScorerDescription, describe, failure_from, validated
from reward_server.processes.child import HEADER
from reward_server.processes.lifetime import die_with_parent
from reward_server.scorers.base import Result, Scorer, ScorerOptions
from reward_server.scorers.loading import user_traceback
from reward_server.scorers.registry import build
from reward_server.types import Group, Score, Status


def main(fd: int, lifeline_fd: int, parent_pid: int, memory_bytes: int) -> None:
    """Runs until the server closes its end, with at most `memory_bytes` of data; 0 means no limit."""
    os.set_inheritable(fd, False)  # a process that user code forks must not hold the connection open
    os.set_inheritable(lifeline_fd, False)
    die_with_parent(parent_pid, lifeline_fd)
    if memory_bytes:
        # Not RLIMIT_AS: it would count what CUDA and torch map without using it, many times the memory in use.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    for name in (signal.SIGINT, signal.SIGTERM):  # a service manager signals the process group; the server ends us
        signal.signal(name, lambda *_: None)
    # If the server ends meanwhile, the connection breaks, and there is nobody left to tell.
    with (
        contextlib.suppress(ConnectionError),
        socket.socket(fileno=fd) as connection,
        connection.makefile("rwb") as file,
    ):
        scorers = _load(file)
        while (frame := _read(file)) is not None:
            name, group = pickle.loads(frame)
            _write(file, _answer(scorers[name], group))
            sys.stdout.flush()
        for scorer in scorers.values():
            scorer.close()


def _load(file: BufferedRWPair) -> dict[str, Scorer]:
    frame = _read(file)
    if frame is None:
        sys.exit(0)
    try:
        scorers = [_loaded(options) for options in pickle.loads(frame)]
    except BaseException as error:
        # Our own errors say all that the user needs. Any other error is user code's and comes with its traceback.
        text = str(error) if isinstance(error, RewardServerError) else user_traceback(error)
        _write(file, {"load_error": text, "is_config": isinstance(error, ConfigError)})
        sys.exit(1)
    _write(file, {"descriptions": {scorer.name: dataclasses.asdict(describe(scorer)) for scorer in scorers}})
    return {scorer.name: scorer for scorer in scorers}


def _loaded(options: ScorerOptions) -> Scorer:
    scorer = build(options)
    scorer.load()
    return scorer


def _answer(scorer: Scorer, group: Group) -> dict[str, Any]:
    try:
        answer = scorer.score(group)
        return _encode(validated(_awaited(answer), len(group)))
    except InvalidGroupError as error:
        return {"invalid_group": str(error)}
    except BaseException as error:  # sys.exit() in user code must end this score only
        failure = failure_from(error)
        return {"raised": failure.message, "details": failure.details}


def _awaited(answer: Any) -> Any:
    if not inspect.isawaitable(answer):
        return answer

    async def wait() -> Any:
        return await answer

    return asyncio.run(wait())


def _encode(result: Result) -> dict[str, Any]:
    return {
        "scores": [[int(score.status), score.value, score.message] for score in result.scores],
        "metrics": result.metrics,
        "extra": result.extra,
    }


def decode_answer(answer: Mapping[str, Any]) -> Result:
    """Decodes an answer in the server. Raises the error that it reports."""
    if "invalid_group" in answer:
        raise InvalidGroupError(answer["invalid_group"])
    if "raised" in answer:
        raise NoResultError(Status.FAILED, answer["raised"], answer["details"])
    scores = tuple(Score(Status(status), value, message) for status, value, message in answer["scores"])
    return Result(scores, answer["metrics"], answer["extra"])


def decode_description(description: Mapping[str, Any]) -> ScorerDescription:
    """Decodes a description in the server."""
    return ScorerDescription(**{**description, "required_columns": tuple(description["required_columns"])})


def _read(file: BufferedRWPair) -> bytes | None:
    header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    body = file.read(size)
    return body if len(body) == size else None


def _write(file: BufferedRWPair, answer: Mapping[str, Any]) -> None:
    body = json.dumps(answer).encode()
    file.write(HEADER.pack(len(body)) + body)
    file.flush()
