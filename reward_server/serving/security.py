"""Authentication and encryption: TLS from files, and bearer tokens from a file that may change.

Owns the certificates and tokens of a server, and the rule about the addresses that it may listen on with or without
them. Health and reflection need no token: they tell only that the server lives, and the published `.proto`. Knows
nothing of the content of calls.

    security = Security(config)                 raises ConfigError, by field
    security.refuse_exposed(addresses)
    name = security.authenticate(metadata)      raises CredentialsError
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import re
import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path

import grpc

from reward_server.addresses import Address
from reward_server.config import ServerConfig, TLSConfig
from reward_server.errors import ConfigError, CredentialsError

log = logging.getLogger("reward_server")

_BEARER = "bearer "


class Security:
    """The credentials of a server. Certificates are read once, and tokens whenever their file changes."""

    def __init__(self, config: ServerConfig):
        """Raises ConfigError for files that cannot be used; it names the field, the path and the reason."""
        self.tls = None if config.tls is None else _tls_credentials(config.tls)
        self._tokens = None if config.tokens_file is None else TokensFile(config.tokens_file)
        self._refuse_unknown_quotas(config)
        self._is_mutual = config.tls is not None and config.tls.client_ca is not None
        self._allow_insecure = config.allow_insecure

    def _refuse_unknown_quotas(self, config: ServerConfig) -> None:
        names = set() if self._tokens is None else self._tokens.names
        for name in config.quotas:
            if name not in names:
                where = config.tokens_file or "tokens_file, which is not set"
                raise ConfigError(
                    f"quotas.{name}: no token has that name in {where}; write a line `{name}: TOKEN` there"
                )

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        """The name of the caller's token, or "" for a token without a name and for a server without tokens.

        Raises CredentialsError if the server has tokens and the caller does not send one of them.
        """
        if self._tokens is None:
            return ""
        given = next((value for key, value in metadata if key == "authorization"), None)
        if not isinstance(given, str) or given[: len(_BEARER)].lower() != _BEARER:
            raise CredentialsError("this server asks for a token, as the metadata `authorization: Bearer …`")
        name = self._tokens.name_of(given[len(_BEARER) :])
        if name is None:
            raise CredentialsError("the token is not one of this server's")
        return name

    def refuse_exposed(self, addresses: Sequence[Address]) -> None:
        """Raises ConfigError for an address that others can reach, unless calls are encrypted and authenticated."""
        if self._allow_insecure or (self.tls is not None and (self._is_mutual or self._tokens is not None)):
            return
        for address in addresses:
            if not address.is_loopback:
                raise ConfigError(
                    f"listen: {address} can be reached from other machines, and {self._lack}. On a network that you "
                    "trust, permit it with --insecure or allow_insecure: true; else listen on 127.0.0.1 or unix:path"
                )

    def refuse_exposed_page(self, address: Address, allow_insecure: bool) -> None:
        """Raises ConfigError for a metrics page that other machines can reach: anybody can read it, unencrypted."""
        if not (address.is_loopback or allow_insecure or self._allow_insecure):
            raise ConfigError(
                f"metrics.listen: {address} can be reached from other machines, and anybody may read the page. On a "
                "network that you trust, permit it with metrics.allow_insecure: true; else listen on 127.0.0.1"
            )

    @property
    def _lack(self) -> str:
        if self.tls is not None:
            return "anybody there may call: set tokens_file or tls.client_ca"
        if self._tokens is not None:
            return "tokens would travel unencrypted: set tls"
        return "callers are neither authenticated nor encrypted: set tls, and tokens_file or tls.client_ca"


class TokensFile:
    """The tokens of a file, which is read again when it changes.

    A line is `token` or `name: token`, and `#` begins a comment line. Tokens with the same name share a quota.
    """

    def __init__(self, path: Path):
        """Raises ConfigError if the file cannot be read or holds no token."""
        self._path = path
        self._seen = _state(path)
        self._tokens = _read_tokens(path)

    @property
    def names(self) -> set[str]:
        return {name for _, name in self._tokens}

    def name_of(self, token: str) -> str | None:
        """The name of a token ("" for none); None if it is not in the file. The time taken reveals nothing of it."""
        self._refresh()
        given = token.strip().encode()
        found = [
            name for known, name in self._tokens if hmac.compare_digest(given, known)
        ]  # compares with each token, always
        return found[-1] if found else None

    def _refresh(self) -> None:
        """Reads a file that has changed. One that cannot be used may be half written: the old tokens stay valid."""
        state = _state(self._path)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._tokens = _read_tokens(self._path)
            log.info("%s has changed: %d tokens are accepted", self._path, len(self._tokens))
        except ConfigError as error:
            log.error("the old tokens stay accepted: %s", error)


def _state(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        stat = os.stat(path)
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
    return None


def _read_tokens(path: Path) -> list[tuple[bytes, str]]:
    """Tokens and their names. The space after the colon tells `name: token` from a token that contains a colon."""
    numbered = enumerate((line.strip() for line in _read("tokens_file", path).splitlines()), start=1)
    lines = {number: line for number, line in numbered if line and not line.startswith(b"#")}
    if not lines:
        raise ConfigError(f"tokens_file: {path} holds no tokens; write one a line")
    tokens = []
    for number, line in lines.items():
        match = re.fullmatch(rb"(?:([\w.-]+):\s+)?([!-~]+)", line)
        if match is None:
            raise ConfigError(
                f"tokens_file: {path}, line {number}: a token is printable ASCII without spaces, alone or after a "
                "name and a colon (`name: token`)"
            )
        tokens.append((match[2], (match[1] or b"").decode()))
    return tokens


def _tls_credentials(tls: TLSConfig) -> grpc.ServerCredentials:
    cert, key = _read("tls.cert", tls.cert), _read("tls.key", tls.key)
    client_ca = None if tls.client_ca is None else _read("tls.client_ca", tls.client_ca)
    _check_pem("tls.cert", tls.cert)
    if tls.client_ca is not None:
        _check_pem("tls.client_ca", tls.client_ca)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key, password="")
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"tls.key: {tls.key} is not the unencrypted PEM private key of {tls.cert}: {_reason(error)}"
        ) from error
    return grpc.ssl_server_credentials([(key, cert)], client_ca, require_client_auth=client_ca is not None)


def _check_pem(field: str, path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{field}: {path} holds no PEM certificate: {_reason(error)}") from error


def _read(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{field}: cannot read {path}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
