"""What calls need of gRPC's context: of `grpc.aio.ServicerContext`, or of that of another way to this process.

Owns the forms, and knows no way.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

import grpc


class CallContext(Protocol):
    """The context of any call."""

    def invocation_metadata(self) -> Any: ...
    def peer(self) -> str: ...
    def time_remaining(self) -> float | None: ...
    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any, /) -> NoReturn: ...


class StreamContext(CallContext, Protocol):
    """The context of a call that answers with several messages."""

    async def write(self, message: bytes, /) -> None: ...
