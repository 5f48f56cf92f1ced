"""What a process does with memory that it has freed: it keeps some for the next long message.

Owns the call to the C library. Knows nothing of messages.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_KEPT_BYTES = 64 << 20
_MOST_IN_HEAP_BYTES = 32 << 20  # the largest that glibc takes


def keep_freed_memory() -> None:
    """Keeps up to 64 MiB of freed memory. Without glibc, it does nothing.

    By default glibc hands the memory of a message of a megabyte back as soon as it is freed, and the pages that the
    system gives for the next one cost up to a quarter of the work on it (`tests/benchmarks/score_groups.py`).
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MOST_IN_HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
