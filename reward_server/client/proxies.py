"""What a proxy between client and server makes of a server that it lost in the middle of a call.

Owns the texts of proxies, and gives such an end the code that a lost server has without a proxy: UNAVAILABLE. `retries`
and the translation into our errors then need to know of no proxy.
"""

from __future__ import annotations

from typing import Any

import grpc

# HTTP's status 500, of which gRPC makes UNKNOWN. It makes UNAVAILABLE of 502, 503 and 504 itself
# (grpc/doc/http-grpc-status-mapping.md).
_HTTP_5XX = "Received http2 header with status: 5"
# Ray Serve's default proxy (2.60) ends the call with the text of Ray's error.
_RAY = "The actor died"

_LOST_SERVER = {grpc.StatusCode.UNKNOWN: _HTTP_5XX, grpc.StatusCode.INTERNAL: _RAY}


def code_of(ended: Any) -> grpc.StatusCode:
    """The code that a call ended with, or UNAVAILABLE if it is a proxy that says so in its own way."""
    code: grpc.StatusCode = ended.code()
    lost = _LOST_SERVER.get(code)
    return grpc.StatusCode.UNAVAILABLE if lost and (ended.details() or "").startswith(lost) else code
