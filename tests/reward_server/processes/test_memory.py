"""What a process keeps of the memory that it has freed."""

from __future__ import annotations

import subprocess
import sys

FREEING = """
from reward_server.processes.memory import keep_freed_memory

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20  # proc(5): pages

def handed_back_mib():
    message = bytes(1) * (8 << 20)
    held = resident_mib()
    del message
    return held - resident_mib()

before = handed_back_mib()
keep_freed_memory()
print(before, handed_back_mib())
"""


def test_a_freed_message_is_kept_for_the_next_one() -> None:
    run = subprocess.run([sys.executable, "-c", FREEING], check=True, capture_output=True, text=True, timeout=60)
    before, after = map(int, run.stdout.split())
    assert before >= 7, "by default glibc hands it back"
    assert after <= 1
