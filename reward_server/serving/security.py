"""Authentication and encryption: TLS (`certificates`), and bearer tokens from a file that may change.

Owns the tokens of a server, and the rule about the addresses that it may listen on with or without TLS and tokens.
Health and reflection need no token: they tell only that the server lives, and the published `.proto`. Knows nothing of
the content of calls.

    security = Security(config)                 raises ConfigError, by field
    security.refuse_exposed(addresses)
    name = security.authenticate(metadata)      raises CredentialsError
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from reward_server.addresses import Address
from reward_server.config import ServerConfig
from reward_server.errors import ConfigError, CredentialsError
from reward_server.serving.certificates import Certificates, read_file, state_of

log = logging.getLogger("reward_server")

_BEARER = "bearer "


class Security:
    """The credentials of a server. Certificates and tokens are read again when their files change."""

    def __init__(self, config: ServerConfig):
        """Raises ConfigError for files that cannot be used; it names the field, the path and the reason."""
        self.tls = None if config.tls is None else Certificates(config.tls).credentials()
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
        self._seen = state_of(path)
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
        state = state_of(self._path)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._tokens = _read_tokens(self._path)
            log.info("%s has changed: %d tokens are accepted", self._path, len(self._tokens))
        except ConfigError as error:
            log.error("the old tokens stay accepted: %s", error)


def _read_tokens(path: Path) -> list[tuple[bytes, str]]:
    """Tokens and their names. The space after the colon tells `name: token` from a token that contains a colon."""
    numbered = enumerate((line.strip() for line in read_file("tokens_file", path).splitlines()), start=1)
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
