"""A name server on loopback whose one name has the addresses that a test says, for clients that look it up."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Sequence

_A, _IN, _HEADER = 1, 1, struct.Struct("!6H")


class NameServer:
    """Answers every question for an A record with `addresses`, and that there is none of any other kind."""

    def __init__(self, addresses: Sequence[str]):
        self.addresses = list(addresses)
        self.questions = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def endpoint(self, port: int) -> str:
        """What a client is given: a name that is looked up here."""
        return f"dns://127.0.0.1:{self._socket.getsockname()[1]}/rewards.test:{port}"

    def close(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        """RFC 1035, 4.1: header, the question as it came, and an answer that points to its name."""
        end = query.index(b"\0", _HEADER.size) + 5
        question, kind = query[_HEADER.size : end], struct.unpack("!H", query[end - 4 : end - 2])[0]
        addresses = self.addresses if kind == _A else []
        self.questions += kind == _A
        (number,) = struct.unpack("!H", query[:2])
        records = [struct.pack("!HHHIH", 0xC00C, _A, _IN, 0, 4) + socket.inet_aton(address) for address in addresses]
        return _HEADER.pack(number, 0x8180, 1, len(records), 0, 0) + question + b"".join(records)
