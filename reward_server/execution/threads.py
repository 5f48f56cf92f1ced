"""Runs one blocking function off the event loop, in a daemon thread that need not end before the process does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[[], T]) -> T:
    """Returns or raises what the function does. Cancelling abandons the thread, which cannot be ended."""
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

    threading.Thread(target=run, name="blocking call", daemon=True).start()  # a daemon: it may hang
    return await asyncio.wrap_future(future)
