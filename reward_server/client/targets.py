"""Where a client connects to: the gRPC target of its endpoints, the options of its channel, and the proxy in between.

Owns endpoints, gRPC's channel options (balancing, health, keepalive) and the rules by which gRPC takes a proxy from the
environment. Opens no connection.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from reward_server import errors

Endpoint = str | Sequence[str]

_SERVICE_CONFIG = json.dumps(
    {
        # Both are needed for traffic to leave a replica that turns NOT_SERVING (gRFC A17).
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }
)

_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", _SERVICE_CONFIG),
    # Without a retry policy, this leaves gRPC's transparent retries, of calls that provably reached no server.
    ("grpc.enable_retries", 1),
    # A request above the default of 256 KiB is silently never retried, and groups of long completions are larger.
    ("grpc.per_rpc_retry_buffer_size", 64 << 20),
    # The client checks the server's own limit before it sends, and names it.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # The client finds a partition or a stopped replica within 15 s instead of at the deadline. Our server accepts pings
    # that are 5 s apart. The ping's own time-out ends the connection (grpcio 1.85); its default is 60 s, whatever the
    # time-out of keepalive says.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # gRPC resolves a name again when connections end, but at most this often; the default is every 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    # A client is back within a second at a replica that returns.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

# gRPC reads these in lower case only, and takes the first that is set (grpc/doc/environment_variables.md).
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")


def target_of(endpoint: Endpoint) -> str:
    """The gRPC target of one or several endpoints.

    One endpoint is `host:port` (a DNS name with several addresses is balanced over), `unix:path` or any gRPC target.
    Several are `host:port` each, and are balanced over at the addresses that their names have now.
    Raises ConfigError for anything else.
    """
    endpoints = [endpoint] if isinstance(endpoint, str) else list(endpoint)
    if not endpoints:
        raise errors.ConfigError("no endpoint given: write host:port or unix:path")
    if len(endpoints) == 1:
        name = endpoints[0]
        if name.startswith(("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")):
            return name
        _host_and_port(name)
        return f"dns:///{name}"
    return "ipv4:" + ",".join(address for name in endpoints for address in _addresses(name))


def channel_options(target: str, checks_health: bool = True) -> tuple[tuple[str, str | int], ...]:
    """The options of a channel to the target. A proxy is used only where one can work: see `_may_use_proxy`."""
    proxy = () if _may_use_proxy(target) else (("grpc.enable_http_proxy", 0),)
    health = () if checks_health else (("grpc.inhibit_health_checking", 1),)
    return (*_OPTIONS, *proxy, *health)


def proxy_of(target: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The proxy that gRPC connects through, as `variable=host:port`, without the password that its URL may hold.

    None if gRPC connects directly: no variable is set, no_proxy names the host, or `channel_options` forbids it.
    """
    variable = next((name for name in _PROXY_VARIABLES if name in environment), None)
    if variable is None or not environment[variable] or not _may_use_proxy(target):
        return None
    excluded = next((environment[name] for name in _NO_PROXY_VARIABLES if name in environment), "")
    if _is_excluded(_host_of(_authority(target)), excluded):
        return None
    url = urlsplit(environment[variable])
    return f"{variable}={url.netloc.rpartition('@')[2]}"


def _may_use_proxy(target: str) -> bool:
    """Whether a proxy can reach the target. It cannot reach this machine's loopback addresses and sockets, and gRPC
    (1.85) asks it to connect to the whole list, as if it were one host, where there are several addresses.
    """
    return not is_here(target) and "," not in _authority(target)


def is_here(target: str) -> bool:
    """Whether the target is one server on this machine: a socket, or a loopback address."""
    if target.startswith(("unix:", "unix-abstract:", "vsock:")):
        return True
    authority = _authority(target)
    return "," not in authority and _is_loopback(_host_of(authority))


def _authority(target: str) -> str:
    """`host:port` of a target such as `dns:///host:port` or `ipv4:host:port`."""
    scheme, colon, rest = target.partition(":")
    return rest.rpartition("/")[2] if colon and scheme in ("dns", "ipv4", "ipv6") else target


def _host_of(authority: str) -> str:
    host = authority if authority.endswith("]") else authority.rpartition(":")[0] or authority
    return host.strip("[]")


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _is_excluded(host: str, excluded: str) -> bool:
    """Whether a no_proxy list names the host, by gRPC's rules: an address range, or the end of the name."""
    for entry in filter(None, (part.strip() for part in excluded.split(","))):
        if host.lower().endswith(entry.lower()):
            return True
        try:
            if (address := _address(host)) is not None and address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:  # the entry is a name
            continue
    return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _host_and_port(name: str) -> tuple[str, int]:
    host, colon, port = name.rpartition(":")
    if not colon or not host or "/" in name or not port.isdigit() or not 0 < int(port) < 65536:
        raise errors.ConfigError(f"endpoint {name!r} is neither host:port nor unix:path")
    return host, int(port)


def _addresses(name: str) -> list[str]:
    host, port = _host_and_port(name.removeprefix("dns:///"))
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise errors.ConfigError(f"endpoint {name!r} cannot be resolved to an IPv4 address: {error}") from error
    return [f"{address[4][0]}:{port}" for address in found]
