"""The other processes of one server: the samples of a group reach any of them, and meet at one.

Owns the unix sockets between the processes of a supervisor, and the forwarding of a call over them. Each process has a
place; a group's samples meet at the place that rendezvous hashing gives it. The process that takes over the place of
one that died listens on the same socket, so that callers who send again meet there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from reward_server import errors
from reward_server.addresses import LONGEST_SOCKET_PATH, Unix
from reward_server.errors import ConfigError, OverloadedError, UnavailableError
from reward_server.rendezvous import ranked
from reward_server.types import Sample
from reward_server.wire_groups import PUSHBACK_KEY

PEER_METHOD = "JoinCohort"
"""The method among peers, beside those of the .proto: ScoreCompletion that is not forwarded again."""

# What the owner of a group needs of a caller's metadata.
_FORWARDED = ("authorization", "reward-caller", "traceparent", "tracestate")
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A place is taken over within seconds, and callers wait for it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


@dataclass(frozen=True, slots=True)
class Places:
    """The places of the processes of one server, and which of them this process has."""

    folder: str
    count: int
    own: int

    def address(self, place: int) -> Unix:
        """The socket of a place. Raises ConfigError if no socket can have such a path."""
        path = Path(self.folder) / f"{place}.sock"
        if len(str(path).encode()) > LONGEST_SOCKET_PATH:
            raise ConfigError(f"the path of a socket is too long: {path}; set TMPDIR to a shorter folder")
        return Unix(path)


class Peers:
    """This process's connections to the others."""

    def __init__(self, places: Places, service_name: str):
        self._places = places
        self._method = f"/{service_name}/{PEER_METHOD}"
        self._channels: dict[int, grpc.aio.Channel] = {}

    @property
    def address(self) -> Unix:
        """Where this process listens for the others."""
        return self._places.address(self._places.own)

    def place_of(self, sample: Sample) -> int | None:
        """The place at which the sample's group meets; None if it is that of this process."""
        places = map(str, range(self._places.count))
        place = int(ranked(places, sample.run_id, sample.group_id)[0])
        return None if place == self._places.own else place

    async def forward(
        self, place: int, request: bytes, metadata: Sequence[tuple[str, Any]], timeout_s: float | None
    ) -> bytes:
        """Sends a serialised request on and returns the serialised response. Raises the error of the other process."""
        if place not in self._channels:
            self._channels[place] = grpc.aio.insecure_channel(str(self._places.address(place)), options=_OPTIONS)
        call: Any = self._channels[place].unary_unary(self._method)
        kept = tuple((key, value) for key, value in metadata if key in _FORWARDED)
        try:
            answer: bytes = await call(request, timeout=timeout_s, metadata=kept)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from error
        return answer

    async def close(self) -> None:
        """Closes the connections."""
        for channel in self._channels.values():
            await channel.close()


def _error_of(error: grpc.aio.AioRpcError) -> errors.RewardServerError:
    """The error that has the code of the other process. Its push-back goes on; that it was one is counted there."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        pushback = [value for key, value in error.trailing_metadata() or () if key == PUSHBACK_KEY]
        return OverloadedError(details, int(pushback[0]) / 1000 if pushback else None, reason="")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return UnavailableError(f"the process at which this group meets is not there: {details}")
    return errors.error_of(code, details)
