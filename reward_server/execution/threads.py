"""Work that takes its time, off the event loop, in a thread of its own that nobody has to wait for in the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[[], T]) -> T:
    """What the function returns or raises. Cancelling leaves the thread to itself: it cannot be ended."""
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="off the loop", daemon=True).start()  # a daemon: it may hang
    return await asyncio.wrap_future(future)
