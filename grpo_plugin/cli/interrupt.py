"""What a run does on Ctrl-C and SIGTERM: it ends quietly, and says where its last checkpoint is.

Owns the handlers of both signals while a run goes on, and the deadline by which the process is gone. Knows nothing of
trainers: it is told the run folder and what to call.

A launcher tells all ranks at once. What a rank raises after it was told (a collective whose peer is gone, a reward
service that is ending) follows from the signal and is not shown.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from transformers.trainer_utils import get_last_checkpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A launcher sends SIGTERM after the terminal's own SIGINT: the second of a pair asks for nothing more.
_PAIR_S = 2.0
# As torchrun gives its ranks before it kills them (torch 2.13, elastic/multiprocessing/api.py, `close`): 30 s.
_DEADLINE_S = 25.0


class Interrupted(KeyboardInterrupt):
    """A run was told to end. Its text is what the user reads; `exit_code` is 128 plus the signal's number."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + number


@contextlib.contextmanager
def interruptible(run_folder: str) -> Iterator[list[Callable[[], None]]]:
    """Inside, SIGINT and SIGTERM end the block; what it put into the list is then called, and Interrupted is raised.

    In a thread other than the main one, where Python has no signal handlers, the block runs as it is.
    """
    closing: list[Callable[[], None]] = []
    if threading.current_thread() is not threading.main_thread():
        yield closing
        return
    handler = _Handler()
    with handler.installed():
        try:
            yield closing
        except BaseException:
            if handler.received is None:
                raise
        if handler.received is None:
            return
        for close in closing:
            with contextlib.suppress(BaseException):
                close()
    raise Interrupted(handler.received, what_is_left(handler.received, run_folder)) from None


class _Handler:
    """Raises KeyboardInterrupt in the main thread at the first signal; ends the process if that takes too long."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._has_ended = threading.Event()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        woken, wakes = socket.socketpair()
        wakes.setblocking(False)
        fd_before = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        # The main thread may be blocked in a collective, where Python runs no handler; this thread is not.
        watch = threading.Thread(target=self._end_in_time, args=(woken,), name="end of an interrupted run", daemon=True)
        watch.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(fd_before)
            self._has_ended.set()
            wakes.close()
            watch.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._received_at > _PAIR_S:
            os._exit(128 + number)  # the user means it; the embedded service ends with this process

    def _end_in_time(self, woken: socket.socket) -> None:
        with woken:
            while number := woken.recv(1):
                if number[0] in SIGNALS:
                    if not self._has_ended.wait(_DEADLINE_S):
                        os._exit(128 + number[0])
                    return


def what_is_left(number: int, run_folder: str) -> str:
    """One line: what ended the run, and where its last checkpoint is."""
    cause = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    last = get_last_checkpoint(run_folder) if Path(run_folder).is_dir() else None
    if last is None:
        return f"stopped by {cause}; {run_folder} has no checkpoint yet (save_steps says how often one is written)"
    return f"stopped by {cause}; the last checkpoint is {last} (go on with --resume_from_checkpoint true)"


def end_of(interrupt: KeyboardInterrupt) -> int:
    """Says on one rank a node what an interrupt leaves; returns the exit code, with which the process is to end."""
    _set_all(signal.SIG_IGN)  # a launcher's second signal must not cut the sentence
    say_once(str(interrupt) or "stopped")
    _set_all(signal.SIG_DFL)  # from here on a signal ends the process at once, without a traceback
    return interrupt.exit_code if isinstance(interrupt, Interrupted) else 128 + signal.SIGINT


def say_once(message: str) -> None:
    """Prints to stderr on the first rank of each node; the others would say the same."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(message, file=sys.stderr, flush=True)


def _set_all(action: signal.Handlers) -> None:
    for number in SIGNALS:
        signal.signal(number, action)
