"""Streamlit, started in this process on one address: no browser is opened, no other host is asked for anything.

Owns Streamlit's options and the life of its server. `on_start(url)` hears where the page is.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamlit.web import bootstrap
from streamlit.web.server import Server

from reward_server.errors import ConfigError
from reward_server.view import app
from reward_server.view.access import is_loopback

_SCRIPT = Path(__file__).with_name("page.py")
_OPTIONS: dict[str, Any] = {
    "browser_gatherUsageStats": False,
    "client_showErrorDetails": "none",
    "client_showErrorLinks": False,
    "client_showSidebarNavigation": False,
    "client_toolbarMode": "minimal",
    "global_developmentMode": False,
    "logger_level": "error",
    "logger_hideWelcomeMessage": True,
    "server_enableAgentApi": False,  # it would show a page's content to whoever asks
    "server_enableStaticServing": False,
    "server_fileWatcherType": "none",
    "server_headless": True,
    "server_showEmailPrompt": False,
}


def serve(process: app.Process, host: str, port: int, on_start: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM. Port 0 is one that is free. Raises ConfigError for an address that is taken."""
    _try(host, port)
    # A name of another site that leads to this machine (DNS rebinding) is refused.
    hosts = ["localhost", "127.0.0.1", "::1", host] if is_loopback(host) else ["*"]
    addressed = {"server_address": host, "server_port": port, "server_allowedHosts": hosts}
    bootstrap.load_config_options(_OPTIONS | addressed)
    app.configure(process)
    asyncio.run(_life(host, on_start))


async def _life(host: str, on_start: Callable[[str], None]) -> None:
    server = Server(str(_SCRIPT), False)
    await server.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    on_start(f"http://{f'[{host}]' if ':' in host else host}:{_port()}")
    await server.stopped


def _port() -> int:
    from streamlit import config  # noqa: PLC0415 - the name is too general for a whole file

    return int(config.get_option("server.port"))


def _try(host: str, port: int) -> None:
    """Streamlit would end the process with a log line."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
