"""A browser and a page of `reward-server view`, as tests use them: real processes, and every request written down."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = "/usr/bin/chromium"
_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 30_000


@contextmanager
def view(*arguments: str | Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`reward-server view` in a process of its own: its address and the process, whose output is a pipe."""
    command = [sys.executable, "-m", "reward_server.cli", "view", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("on "):
                break
        assert said[-1:], "the command said nothing"
        assert said[-1].startswith("on "), "".join(said)
        yield said[-1].removeprefix("on ").strip(), process
    finally:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def browser() -> Iterator[Any]:
    """Debian's chromium, without a window."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only tests of pages pay for it

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET))
        try:
            yield opened
        finally:
            opened.close()


class Page:
    """A tab. `requests` are the addresses of all that it asked for."""

    def __init__(self, opened: Any, url: str):
        self.url = url
        self.requests: list[str] = []
        self.tab = opened.new_page(viewport={"width": 1200, "height": 900})
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("websocket", lambda socket: self.requests.append(socket.url))
        self.tab.set_default_timeout(PATIENCE_MS)

    def open(self, query: str, heading: str) -> None:
        """Goes to a view, and waits until it is there."""
        self.tab.goto(f"{self.url}/?{query}")
        self.tab.get_by_role("heading", name=heading, exact=True).wait_for()

    def see(self, text: str) -> None:
        """Waits until a text can be seen on the page."""
        self.tab.get_by_text(text).filter(visible=True).first.wait_for()

    @property
    def text(self) -> str:
        return self.tab.inner_text("body")

    def foreign_requests(self) -> list[str]:
        """Requests to any other address than the page's own."""
        host = self.url.split("//")[1]
        return [url for url in self.requests if url.split(":")[0] not in ("data", "blob") and f"//{host}/" not in url]
