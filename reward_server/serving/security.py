"""Who may call, and that nobody else reads it: TLS from files, bearer tokens from a file that may change.

Owns the certificates and tokens of a server, and the rule on where it may listen with what of them. Health and
reflection stay open: they tell whether it lives, and the published `.proto`. Knows nothing of calls' contents.

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
    """One server's credentials. Certificates are read once, tokens whenever their file changes."""

    def __init__(self, config: ServerConfig):
        """Raises ConfigError, naming field, path and reason, for files that cannot be used."""
        self.tls = None if config.tls is None else _tls_credentials(config.tls)
        self._tokens = None if config.tokens_file is None else TokensFile(config.tokens_file)
        self._refuse_quotas_of_nobody(config)
        self._is_mutual = config.tls is not None and config.tls.client_ca is not None
        self._allow_insecure = config.allow_insecure

    def _refuse_quotas_of_nobody(self, config: ServerConfig) -> None:
        names = set() if self._tokens is None else self._tokens.names
        for name in config.quotas:
            if name not in names:
                where = config.tokens_file or "tokens_file, which is not set"
                raise ConfigError(
                    f"quotas.{name}: no token has that name in {where}; write a line `{name}: TOKEN` there"
                )

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        """The name of the caller's token, "" if it has none. Raises CredentialsError unless the caller brings one of
        the tokens, if there are any."""
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
        """Raises ConfigError for an address that other machines reach, unless calls are encrypted and authenticated."""
        if self._allow_insecure or (self.tls is not None and (self._is_mutual or self._tokens is not None)):
            return
        for address in addresses:
            if not address.is_loopback:
                raise ConfigError(
                    f"listen: {address} can be reached from other machines, and {self._lack}. On a network that you "
                    "trust, permit it with --insecure or allow_insecure: true; else listen on 127.0.0.1 or unix:path"
                )

    def refuse_exposed_page(self, address: Address, allow_insecure: bool) -> None:
        """Raises ConfigError for a metrics page that other machines reach: it is plain text, and for anybody."""
        if not (address.is_loopback or allow_insecure or self._allow_insecure):
            raise ConfigError(
                f"metrics.listen: {address} can be reached from other machines, and anybody may read the page. On a "
                "network that you trust, permit it with metrics.allow_insecure: true; else listen on 127.0.0.1"
            )

    @property
    def _lack(self) -> str:
        if self.tls is not None:
            return "anybody may call: set tokens_file, or tls.client_ca"
        if self._tokens is not None:
            return "tokens would travel in plain text: set tls"
        return "callers are neither authenticated nor encrypted: set tls, and tokens_file or tls.client_ca"


class TokensFile:
    """The tokens of a file, one a line, as `token` or `name: token`; `#` begins a comment line; read again when the
    file changes. Tokens of one name share its quota."""

    def __init__(self, path: Path):
        """Raises ConfigError if it cannot be read or holds none."""
        self._path = path
        self._seen = _state(path)
        self._tokens = _read_tokens(path)

    @property
    def names(self) -> set[str]:
        return {name for _, name in self._tokens}

    def name_of(self, token: str) -> str | None:
        """Its name, "" for one without; None if it is not one of them. The time does not tell how much is right."""
        self._refresh()
        given = token.strip().encode()
        found = [name for known, name in self._tokens if hmac.compare_digest(given, known)]  # each of them, always
        return found[-1] if found else None

    def _refresh(self) -> None:
        """A file that cannot be used leaves the tokens of before, since it may be half written; the log says so."""
        state = _state(self._path)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._tokens = _read_tokens(self._path)
            log.info("%s has changed: %d tokens are accepted", self._path, len(self._tokens))
        except ConfigError as error:
            log.error("the tokens of before stay accepted: %s", error)


def _state(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        stat = os.stat(path)
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
    return None


def _read_tokens(path: Path) -> list[tuple[bytes, str]]:
    """Tokens and their names. A space after the colon tells `name: token` from a token that has a colon in it."""
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
