"""Who may see the page, and on which addresses it may listen. Pure."""

from __future__ import annotations

import hmac
import ipaddress
from pathlib import Path

from reward_server.errors import ConfigError

_LEAST_TOKEN_CHARACTERS = 16


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_listen(host: str, token: str | None) -> None:
    """Raises ConfigError for an address beyond this machine without a token: records hold prompts and completions."""
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--listen {host} can be reached from other machines, and records hold prompts and completions: "
            "add --token-file, or listen on 127.0.0.1"
        )


def read_token(path: Path) -> str:
    """The first line of a file. Raises ConfigError if there is none, or one that is too short to be secret."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: {error}") from error
    token = lines[0].strip() if lines else ""
    if len(token) < _LEAST_TOKEN_CHARACTERS:
        raise ConfigError(f"--token-file {path}: its first line needs at least {_LEAST_TOKEN_CHARACTERS} characters")
    return token


def is_token(given: str, token: str) -> bool:
    """In a time that tells nothing of the token."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode())
