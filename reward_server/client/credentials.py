"""The credentials of a client: its bearer token, its certificates, and the certificates that it trusts.

Owns the reading of token and certificate files, and the opening of channels with them. Knows nothing of calls. A token
appears in no message, no `repr` and no log.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from reward_server.errors import ConfigError

TOKEN_VARIABLE = "REWARD_TOKEN"

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ClientTLS:
    """Encryption of a client's connections. All files are PEM.

    `ca_file` holds the certificates that sign the server's certificate; without it, gRPC's public ones are used.
    `cert_file` and `key_file` (unencrypted) are the client's own certificate, for a server that asks for one.
    `server_name` is the name in the server's certificate, if that is not the host of the endpoint.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError(
                "a client's certificate and its private key belong together: give cert_file and key_file, or neither"
            )

    def credentials(self) -> grpc.ChannelCredentials:
        """gRPC's credentials, read from the files. Raises ConfigError, which names the path and the reason."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca_file is not None:
            _check(self.ca_file, "holds no PEM certificate", context.load_verify_locations)
        if self.cert_file is not None:
            _check(
                self.cert_file,
                f"is no PEM certificate of the unencrypted private key {self.key_file}",
                lambda path: context.load_cert_chain(path, self.key_file, password=""),
            )
        return grpc.ssl_channel_credentials(_read(self.ca_file), _read(self.key_file), _read(self.cert_file))


class Bearer:
    """The token that calls carry: a given one, that of a file that is read for each call, or REWARD_TOKEN."""

    def __init__(self, token: str | None, token_file: str | Path | None):
        """Raises ConfigError for a file that cannot be read and for text that cannot be a token."""
        if token is not None and token_file is not None:
            raise ConfigError(f"token and token_file ({token_file}) exclude each other: give one")
        self._file = None if token_file is None else Path(token_file)
        self._metadata: Metadata = ()
        if self._file is not None:
            self._metadata = _of_file(self._file)
        elif token is not None:
            self._metadata = _authorization(token, "token")
        elif from_environment := os.environ.get(TOKEN_VARIABLE):
            self._metadata = _authorization(from_environment, TOKEN_VARIABLE)

    def metadata(self) -> Metadata:
        """The metadata of a call. While the file cannot be read (it may be half written), the old token is used."""
        if self._file is not None:
            try:
                self._metadata = _of_file(self._file)
            except ConfigError:
                return self._metadata
        return self._metadata


def channel(target: str, options: Sequence[tuple[str, Any]], tls: ClientTLS | None) -> grpc.Channel:
    """A channel, which connects at the first call. Raises ConfigError for files that cannot be used."""
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, tls.credentials(), options=[*options, *_name(tls)])


def aio_channel(target: str, options: Sequence[tuple[str, Any]], tls: ClientTLS | None) -> grpc.aio.Channel:
    """The same as `channel`, for asyncio."""
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, tls.credentials(), options=[*options, *_name(tls)])


def check_target(target: str, tls: ClientTLS | None) -> None:
    """Raises ConfigError if the target cannot be encrypted, or if no server name to check is known."""
    if tls is None:
        return
    if target.startswith("unix"):
        raise ConfigError(f"{target} is a unix socket, which is not encrypted: leave tls out")
    if target.startswith(("ipv4:", "ipv6:")) and "," in target and tls.server_name is None:
        raise ConfigError(
            f"the name in the certificates of {target} is not known: give ClientTLS(server_name=...), or one DNS name "
            "with all of these addresses as the endpoint"
        )


_REASONS = (
    (r"certificate has expired", "the server's certificate has expired: renew it"),
    (r"certificate is not yet valid", "the server's certificate is not valid yet: compare the clocks"),
    (r"Hostname Verification", "the server's certificate is for another host name than the endpoint's"),
    (r"CERTIFICATE_VERIFY_FAILED", "the server's certificate is not signed by the CA that this client trusts"),
    (r"WRONG_VERSION_NUMBER", "the server does not speak TLS, and this client does"),
    (
        r"CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE|BAD_CERTIFICATE|UNKNOWN_CA",
        "the server refuses this client's certificate",
    ),
    (r"[Hh]andshake failed", "the TLS handshake failed"),
)


def handshake_failure(details: str) -> str | None:
    """Why TLS refused the peer, by gRPC's (1.85) details of the last connection; None if TLS did not refuse it."""
    return next((reason for pattern, reason in _REASONS if re.search(pattern, details)), None)


def _name(tls: ClientTLS) -> list[tuple[str, str]]:
    return [] if tls.server_name is None else [("grpc.ssl_target_name_override", tls.server_name)]


def _of_file(path: Path) -> Metadata:
    """The token in the first line that is no comment."""
    text = _read(path) or b""
    lines = (line.strip() for line in text.splitlines())
    if (token := next((line for line in lines if line and not line.startswith(b"#")), None)) is None:
        raise ConfigError(f"{path} holds no token")
    return _authorization(token.decode("utf-8", "replace"), str(path))


def _authorization(token: str, where: str) -> Metadata:
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigError(f"{where}: a token is printable ASCII without spaces")
    return (("authorization", f"Bearer {token}"),)


def _check(path: str | Path, what: str, load: Any) -> None:
    try:
        load(path)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{path} {what}: {error.strerror or error}") from error


def _read(path: str | Path | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
