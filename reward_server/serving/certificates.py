"""The TLS certificate of a server, which may be replaced while it serves.

Owns the reading of its PEM files. gRPC asks before each handshake, so connections that are open keep the certificate
that they were made with. Knows nothing of tokens and addresses.
"""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
from pathlib import Path
from typing import Any

import grpc

from reward_server.config import TLSConfig
from reward_server.errors import ConfigError

log = logging.getLogger("reward_server")

FileState = tuple[int, int, int] | None


class Certificates:
    """A certificate, its key and the CA of callers, read again when one of their files has changed."""

    def __init__(self, tls: TLSConfig):
        """Raises ConfigError for files that cannot be used; it names the field, the path and the reason."""
        self._tls = tls
        self._seen = self._states()
        self._first = _configuration(tls)

    def credentials(self) -> grpc.ServerCredentials:
        """gRPC's credentials of a server, which follow the files."""
        fetch: Any = self.changed  # types-grpcio does not know that None keeps the certificate
        return grpc.dynamic_ssl_server_credentials(
            self._first, fetch, require_client_authentication=self._tls.client_ca is not None
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificate if the files have changed, else None.

        Files that cannot be used may be half written: the old certificate stays.
        """
        states = self._states()
        if states == self._seen:
            return None
        self._seen = states
        try:
            configuration = _configuration(self._tls)
        except ConfigError as error:
            log.error("the old certificate stays in use: %s", error)
            return None
        log.info("%s has changed: new connections get the new certificate", self._tls.cert)
        return configuration

    def _states(self) -> list[FileState]:
        return [state_of(path) for path in (self._tls.cert, self._tls.key, self._tls.client_ca) if path is not None]


def state_of(path: Path) -> FileState:
    """What changes when a file does, also when a link to it is turned; None if there is no file."""
    with contextlib.suppress(OSError):
        stat = os.stat(path)
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
    return None


def read_file(field: str, path: Path) -> bytes:
    """The content of a file that a field of the configuration names. Raises ConfigError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{field}: cannot read {path}: {_reason(error)}") from error


def _configuration(tls: TLSConfig) -> grpc.ServerCertificateConfiguration:
    cert, key = read_file("tls.cert", tls.cert), read_file("tls.key", tls.key)
    client_ca = None if tls.client_ca is None else read_file("tls.client_ca", tls.client_ca)
    _check_pem("tls.cert", tls.cert)
    if tls.client_ca is not None:
        _check_pem("tls.client_ca", tls.client_ca)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key, password="")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"tls.key: {tls.key} is not the unencrypted PEM private key of {tls.cert}: {_reason(error)}"
        ) from error
    return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)


def _check_pem(field: str, path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{field}: {path} holds no PEM certificate: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
