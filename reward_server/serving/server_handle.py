"""A server process as its supervisor sees it: commands to it by number, several at once, and their answers.

Owns the parent's side of the line between the two; the child's side is `server_process`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

from reward_server import errors, wire
from reward_server.errors import ScorerLoadError
from reward_server.processes.child import ChildEndedError, ChildProcess
from reward_server.processes.lifetime import how_it_ended
from reward_server.types import ServerInfo

_CLOSE_GRACE_S = 5.0


class ServerHandle(ChildProcess):
    """One server process under a supervisor."""

    def __init__(self, *process: Any):
        super().__init__(*process)
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._told: set[asyncio.Task[Any]] = set()
        self._reading = asyncio.create_task(self._read())

    async def ask(self, command: str, *arguments: Any) -> dict[str, Any]:
        """Sends a command and returns its answer.

        Raises the error that the process raised, as the same type; ChildEndedError if it ends before it answers.
        """
        number = next(self._numbers)
        self._answers[number] = future = asyncio.get_running_loop().create_future()
        try:
            await self.send((number, command, *arguments))
            await asyncio.wait({future, self._reading}, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                raise ChildEndedError(f"server process {self.pid} ended")
        finally:
            del self._answers[number]
        answer = future.result()
        if "error" in answer:
            raise getattr(errors, answer["type"], ScorerLoadError)(answer["error"])
        return answer

    async def ask_info(self, command: str, *arguments: Any) -> ServerInfo:
        """Sends a command that loads scorers, and returns the info of the server that has loaded them.

        Raises ConfigError or ScorerLoadError, the latter also if the process dies meanwhile.
        """
        try:
            answer = await self.ask(command, *arguments)
        except ChildEndedError as error:
            await self.ended()
            raise ScorerLoadError(
                f"a server process died while loading the scorers ({how_it_ended(self.returncode)}); its output is in "
                "the server's standard error"
            ) from error
        return wire.decode_info(wire.pb.GetServerInfoResponse.FromString(bytes.fromhex(answer["info"])))

    def tell(self, command: str) -> None:
        """Sends a command without waiting for its answer."""
        task = asyncio.create_task(self.ask(command))
        self._told.add(task)
        task.add_done_callback(self._forget)

    async def close(self, grace_s: float = _CLOSE_GRACE_S) -> None:
        await super().close(grace_s)
        await asyncio.wait({self._reading, *self._told})

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._told.discard(task)
        if not task.cancelled():
            task.exception()  # the process has ended, and the supervisor logs that

    async def _read(self) -> None:
        with contextlib.suppress(ChildEndedError):
            while True:
                answer = await self.receive()
                if (future := self._answers.get(answer["number"])) is not None and not future.done():
                    future.set_result(answer)
