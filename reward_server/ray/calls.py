"""The way of a call between Ray's proxy and `serving.service`: a context and an answer in the forms that both know.

Owns the translation. An error is set on Ray's context and the method returns: of a method that raises, Ray's proxy
drops the trailing metadata (Ray 2.60), with the time after which a caller that was pushed back is to return.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from ray.serve.grpc_util import RayServegRPCContext

from reward_server.serving.service import RewardService


class Answer:
    """The bytes of a response where Ray expects a message."""

    def __init__(self, response: bytes):
        self._response = response

    def SerializeToString(self) -> bytes:
        return self._response


async def answer(service: RewardService, method: str, request: Any, context: RayServegRPCContext) -> Answer:
    """Serves a call. An error of it is set on the context, and its answer is empty."""
    call = _Context(context)
    try:
        return Answer(await service.call(method, request.SerializeToString(), call))
    except _AbortedError:
        return Answer(b"")


class _AbortedError(Exception):
    """The call has ended with an error, which is on its context."""


class _Context:
    """`contexts.CallContext` over Ray's, which knows neither abort nor deadlines."""

    def __init__(self, context: RayServegRPCContext):
        self._context = context

    def invocation_metadata(self) -> Any:
        return self._context.invocation_metadata()

    def peer(self) -> str:
        return self._context.peer()

    def time_remaining(self) -> float | None:
        return None  # Ray says no deadlines; it cancels the call

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any, /) -> NoReturn:
        self._context.set_code(code)
        self._context.set_details(details)
        self._context.set_trailing_metadata(list(trailing_metadata))
        raise _AbortedError
