"""The size and the removal of a folder that a program wrote to. A program may have built anything in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

_MOST_FILES = 10_000


def fits(folder: Path, disk_bytes: int) -> bool:
    """Whether what was written to the folder is within the limit."""
    left, files, folders = disk_bytes, _MOST_FILES, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        left -= entry.stat(follow_symlinks=False).st_blocks * 512
                    files -= 1
                    folders += [entry.path] * entry.is_dir(follow_symlinks=False)
        except FileNotFoundError:  # gone by now
            continue
        except OSError:  # too deep or not readable: its size is unknown
            return False
        if left < 0 or files < 0:
            return False
    return True


def remove(folder: str | Path) -> None:
    """Deletes such a folder, which may be deeper than Python recurses, or closed to its owner."""
    with contextlib.suppress(OSError, RecursionError):
        shutil.rmtree(folder)
    if os.path.lexists(folder):
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run([*command, "--", str(folder)], check=False, timeout=60, stderr=subprocess.DEVNULL)
