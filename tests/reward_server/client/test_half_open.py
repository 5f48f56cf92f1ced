"""Callers that vanish without a word, where the machine allows a network of one's own to cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNSHARE = ["unshare", "--map-root-user", "--net"]
SCRIPT = Path(__file__).parents[2] / "support" / "half_open.py"

pytestmark = pytest.mark.slow  # a keepalive's seconds


@pytest.fixture(scope="module", autouse=True)
def may_have_a_network() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("the unshare command makes the network to cut, and is not here")
    probe = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, timeout=30, check=False)
    if probe.returncode:
        pytest.skip(f"this machine allows no network namespace: {probe.stderr.strip()}")


def test_a_caller_that_vanished_is_noticed_by_its_silence_and_its_call_ends_and_is_counted() -> None:
    with lost_caller(keepalive_s=1.0) as asking, lost_caller(keepalive_s=600.0) as not_asking:
        noticed, unnoticed = (json.loads(process.communicate(timeout=120)[0]) for process in (asking, not_asking))
    assert unnoticed["held_s"] is None  # nothing else tells: the network was cut as it was meant to be
    assert unnoticed["counters"] == [1.0, 0.0]
    assert noticed["held_s"] is not None
    assert noticed["counters"] == [1.0, 1.0]
    assert noticed["after"] == 2.0


def lost_caller(keepalive_s: float) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [*UNSHARE, sys.executable, str(SCRIPT), str(keepalive_s)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
