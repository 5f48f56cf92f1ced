"""The addresses that a server listens on: parsing, checking, binding, and removing socket files.

Owns `host:port` and `unix:path`, including a socket file that a dead server has left behind. Knows nothing of calls.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from reward_server.errors import ConfigError

# sun_path of <sys/un.h>: 108 bytes on Linux and 104 on macOS, the closing zero included.
LONGEST_SOCKET_PATH = 103


@dataclass(frozen=True, slots=True)
class TCP:
    """A host and a port; port 0 takes a free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        host = self.host.strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def check(self) -> None:
        """Raises ConfigError if the port cannot be bound."""
        try:
            found = socket.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, address in found:
                with socket.socket(family, kind, protocol) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(address)
        except OSError as error:
            raise self._unusable(error) from error

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def reserve(self) -> tuple[list[socket.socket], str]:
        """Holds the port for processes that share it, without listening. Returns the sockets and the endpoint with the
        real port.

        Raises ConfigError if another process has the port.
        """
        self.check()  # with SO_REUSEPORT alone, the port could be shared with a process that is not ours
        port, held = self.port, []
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(
                self.host.strip("[]"), self.port, type=socket.SOCK_STREAM
            ):
                held.append(holder := socket.socket(family, kind, protocol))
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                holder.bind((address[0], port, *address[2:]))
                port = holder.getsockname()[1]  # if it was 0, the other address families take the same port
        except OSError as error:
            for holder in held:
                holder.close()
            raise self._unusable(error) from error
        return held, f"{self.host}:{port}"

    def bind(self, server: grpc.aio.Server, tls: grpc.ServerCredentials | None = None) -> str:
        """Binds the port and returns the endpoint with the real port. Raises ConfigError."""
        try:
            port = server.add_secure_port(str(self), tls) if tls else server.add_insecure_port(str(self))
            return f"{self.host}:{port}"
        except RuntimeError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> ConfigError:
        way_out = "; stop the process that has it, choose another port, or 0 for a free one" if self.port else ""
        return ConfigError(f"cannot listen on {self.host}:{self.port}: {error}{way_out}")

    def release(self) -> None:
        """Does nothing: nothing is left of a port."""


@dataclass(frozen=True, slots=True)
class Unix:
    """A socket file."""

    path: Path

    is_loopback = True

    def __str__(self) -> str:
        return f"unix:{self.path}"

    def bind(self, server: grpc.aio.Server, tls: grpc.ServerCredentials | None = None) -> str:
        """Binds the socket and returns the endpoint. It uses no TLS: file permissions decide who may connect.

        Raises ConfigError.
        """
        try:
            server.add_insecure_port(f"unix:{self.path}")
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on unix:{self.path}: can a file be made in {self.path.parent}?"
            ) from error
        return f"unix:{self.path}"

    def release(self) -> None:
        """Removes the socket file."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def check(self) -> None:
        """Removes the socket file of a dead server. Raises ConfigError if a server uses it, or if it is no socket."""
        if not self.path.parent.is_dir():
            raise ConfigError(f"cannot listen on unix:{self.path}: there is no folder {self.path.parent}; make it")
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ConfigError(f"cannot listen on unix:{self.path}: there is a file of that name that is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
                return
            except OSError as error:
                raise ConfigError(f"cannot listen on unix:{self.path}: {error}") from error
        raise ConfigError(f"cannot listen on unix:{self.path}: another server does; stop it or choose another path")


Address = TCP | Unix


def parse_address(text: str) -> Address:
    """Parses an address to listen on. Raises ConfigError if it is neither host:port nor unix:path."""
    if text.startswith("unix:"):
        return _unix(text)
    host, colon, port = text.rpartition(":")
    is_bare_ipv6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if not colon or not host or is_bare_ipv6 or "/" in text or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"listen: {text!r} is neither host:port (IPv6 in brackets) nor unix:path")
    return TCP(host, int(port))


def _unix(text: str) -> Unix:
    path = text.removeprefix("unix:")
    if path.startswith("//"):  # unix:///absolute/path, as gRPC writes it too
        path = path[2:]
    if not path:
        raise ConfigError(f"listen: {text!r} names no path; write unix:path")
    if (length := len(path.encode())) > LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"listen: the path of {text!r} is {length} bytes long and a socket's may be {LONGEST_SOCKET_PATH}; choose "
            "a shorter one, or a relative one"
        )
    return Unix(Path(path))
