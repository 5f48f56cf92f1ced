"""What a server shows of itself, as a test reads it: its metrics page as numbers, its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, frozenset[tuple[str, str]]]


class Page:
    """The numbers of a metrics page at one moment."""

    def __init__(self, text: str):
        self.text = text
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    @classmethod
    def at(cls, url: str) -> Page:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return cls(answer.read().decode())

    def __call__(self, name: str, **labels: str) -> float:
        """One number; 0 if there is none of these labels yet."""
        return self.samples.get((f"reward_server_{name}", frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """The sum over every series that has at least these labels."""
        wanted = set(labels.items())
        return sum(
            value
            for (found, of), value in self.samples.items()
            if found == f"reward_server_{name}" and wanted <= set(of)
        )

    def label_values(self) -> set[str]:
        return {value for _, labels in self.samples for _, value in labels}


class Server:
    """A server in a process of its own, that has a page."""

    def __init__(self, pid: int, endpoint: str, url: str):
        self._pid = pid
        self._url = url
        self.endpoint = endpoint

    def page(self) -> Page:
        return Page.at(self._url)

    def memory_mib(self) -> float:
        """What it holds resident."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def served_by_cli(*arguments: str) -> Iterator[Server]:
    """`reward-server serve` with these arguments; it drains at the end of the block, and nothing may be cut."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "reward_server.cli", "serve", "--ready-fd", str(write), *arguments]
    with subprocess.Popen(command, pass_fds=[write]) as process:
        os.close(write)
        try:
            with open(read) as ready:
                answer = json.loads(ready.readline())
            yield Server(process.pid, answer["endpoints"][0], answer["metrics"])
        finally:
            process.terminate()
    assert process.returncode == 0
