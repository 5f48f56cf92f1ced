"""The replicas behind an endpoint, one by one: what their names resolve to, as every client sees it.

Owns the resolving of names and its repetition. Opens no connection and knows nothing of groups.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
import socket
import threading
import time
from dataclasses import dataclass

from reward_server.client.credentials import ClientTLS
from reward_server.client.targets import is_here, proxy_of
from reward_server.errors import ConfigError

log = logging.getLogger("reward_server.client")

# Replicas that come are found within this time, even if none fails. All clients should see the same set soon.
_RESOLVE_EVERY_S = 20.0
_RESOLVE_AGAIN_AFTER_S = 2.0
# Behind a name of one address there may be a proxy that deals calls out to so many replicas, or to more.
_BEHIND_ONE_ADDRESS = 4


@dataclass(frozen=True, slots=True)
class Replica:
    """One server: its gRPC target, and the credentials with the name that its certificate is for."""

    target: str
    tls: ClientTLS | None


class Replicas:
    """The replicas that a target of `targets.target_of` stands for."""

    def __init__(self, target: str, tls: ClientTLS | None):
        self._target = target
        self._tls = tls
        self._lock = threading.Lock()
        self._found: dict[str, Replica] = {}
        self._resolved_at = 0.0
        self._is_resolving = False

    def current(self) -> dict[str, Replica]:
        """The replicas by address. Raises ConfigError if the name cannot be resolved at the first use."""
        if not self._found:
            with self._lock:
                self._found = self._found or self._resolved()
        else:
            self.refresh(_RESOLVE_EVERY_S)
        return self._found

    def count(self) -> int:
        """Over how many replicas calls should be spread, as far as is known by now. Does not wait."""
        if is_here(self._target):
            return 1
        if self._target.startswith("dns:"):
            if proxy_of(self._target) is None:  # or else this machine's names may not be the proxy's
                self.refresh(_RESOLVE_EVERY_S)
            found = len(self._found)
        else:
            found = len(self.current())
        return found if found > 1 else _BEHIND_ONE_ADDRESS

    def refresh(self, older_than_s: float = _RESOLVE_AGAIN_AFTER_S) -> None:
        """Resolves the name again in a thread, if the last time is long enough ago."""
        with self._lock:
            is_fresh = time.monotonic() - self._resolved_at < older_than_s
            if is_fresh or self._is_resolving or not self._target.startswith("dns:"):
                return
            self._is_resolving = True
        threading.Thread(target=self._resolve_again, name="reward client resolver", daemon=True).start()

    def _resolve_again(self) -> None:
        try:
            self._found = self._resolved()
        except ConfigError as error:
            log.warning("the replicas of before are used: %s", error)
        finally:
            self._is_resolving = False

    def _resolved(self) -> dict[str, Replica]:
        self._resolved_at = time.monotonic()
        scheme, _, rest = self._target.partition(":")
        if scheme == "dns":
            return self._of_name(rest.rpartition("/")[2])
        if scheme in ("ipv4", "ipv6"):
            targets = [f"{scheme}:{address}" for address in rest.split(",")]
            return {target: Replica(target, self._tls) for target in targets}
        return {self._target: Replica(self._target, self._tls)}

    def _of_name(self, name: str) -> dict[str, Replica]:
        host, _, port = name.rpartition(":")
        host = host.strip("[]")
        tls = self._tls
        if tls is not None and tls.server_name is None and not _is_address(host):
            tls = dataclasses.replace(tls, server_name=host)
        try:
            found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            raise ConfigError(f"endpoint {name!r} cannot be resolved: {error}; is the name right?") from error
        four, six = (
            {str(address[0]) for family, _, _, _, address in found if family is wanted}
            for wanted in (socket.AF_INET, socket.AF_INET6)
        )
        targets = [f"ipv4:{ip}:{port}" for ip in four] or [f"ipv6:[{ip}]:{port}" for ip in six]
        return {target: Replica(target, tls) for target in targets}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
