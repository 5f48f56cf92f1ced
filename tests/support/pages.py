"""Pages of Markdown as tests see them: their code blocks, and the running of a page as a reader would follow it.

A comment before a block says what it is: `<!-- file: NAME -->`, the reader saves it under this name;
`<!-- not run here: REASON -->`, it needs what this machine lacks; `<!-- exits with N -->`, as its commands do.

Knows nothing of what the pages are about. Hub names in the pages are folders of the working folder, which libraries
look at first, so code runs as it stands but for what ON_THIS_MACHINE says.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from reward_server.client import RewardClient
from tests.support.ray_cluster import apart

DEFAULT_PORT = "50051"
ON_THIS_MACHINE = {"num_generations=8)": "num_generations=8, use_cpu=True, max_completion_length=16)"}  # without a GPU


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>file:|not run here:|exits with) (?P<value>.+?) -->\n)?"
    r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: language, text, the name under which a reader saves it, why it is not run, how commands exit."""

    language: str
    text: str
    file: str | None
    not_run: str | None
    exit_code: int = 0

    @property
    def commands(self) -> list[str]:
        """A shell block's commands, without comments; a line that ends in a backslash goes on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if shlex.split(line, comments=True)]


def blocks_of(page: Path) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        marks = {match["mark"]: match["value"]}
        code = int(marks.get("exits with", 0))
        found.append(Block(match["language"], match["text"], marks.get("file:"), marks.get("not run here:"), code))
    return found


@dataclass
class Reader:
    """Follows a page in a folder of its own: saves its files, then runs its Python and its commands in their order.

    Port 50051 is one that is free. `reward-server serve` and `serve run` go on in the background until `close`. What a
    page exports holds for the commands after it.
    """

    folder: Path
    port: str = field(default_factory=_free_port)
    _servers: list[subprocess.Popen[str]] = field(default_factory=list)
    _exported: dict[str, str] = field(default_factory=dict)

    def save(self, block: Block) -> None:
        assert block.file is not None
        (self.folder / block.file).write_text(self._here(block.text))

    def run_python(self, block: Block) -> None:
        code = [block.file] if block.file else ["-c", self._here(block.text)]
        self._run([sys.executable, *code])

    def run_command(self, command: str, exit_code: int = 0) -> None:
        words = shlex.split(self._here(command), comments=True)
        if words[0] == "export":
            self._exported |= dict(word.split("=", 1) for word in words[1:])
            return
        words[0] = str(Path(sys.executable).parent / words[0])
        if words[1:2] == ["serve"]:
            self._serve([*words, "--listen", f"127.0.0.1:{self.port}"], "^on ")
        elif Path(words[0]).name == "serve":
            self._exported |= apart()
            self._serve(words, "Submitted deploy config")
            with RewardClient(f"localhost:{self.port}") as client:
                client.connect(120)
        else:
            self._run(words, exit_code)

    def close(self) -> None:
        for server in self._servers:
            server.send_signal(signal.SIGINT)
            server.wait(60)
            if server.stdout is not None:
                server.stdout.close()

    def _serve(self, words: list[str], ready: str) -> None:
        """Starts a server, and returns when it has said that it is ready. A thread reads on, or it would block."""
        server = subprocess.Popen(
            words, cwd=self.folder, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._servers.append(server)
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if re.search(ready, line):
                break
        else:
            raise AssertionError(f"{shlex.join(words)} did not start:\n{''.join(said)[-3000:]}")
        threading.Thread(target=server.stdout.read, daemon=True).start()

    def _run(self, words: list[str], exit_code: int = 0) -> None:
        run = subprocess.run(
            words, cwd=self.folder, env=self._env, capture_output=True, text=True, timeout=200, check=False
        )
        said = f"{shlex.join(words)[:300]} ended with {run.returncode}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
        assert run.returncode == exit_code, said

    def _here(self, text: str) -> str:
        for written, here in {DEFAULT_PORT: self.port, **ON_THIS_MACHINE}.items():
            text = text.replace(written, here)
        return text

    @property
    def _env(self) -> dict[str, str]:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        # Unbuffered, since a server's lines are waited for.
        here = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
        return {**os.environ, **self._exported, **here}
