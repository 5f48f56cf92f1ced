"""Starts scripts of this folder under `accelerate launch`, as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def launch(
    accelerate: str, script: str, folder: Path, timeout_s: float = 360, **specs: dict[str, Any]
) -> tuple[int | None, str]:
    """Runs a script on the ranks of a shipped accelerate config, with one spec.json a spec, each in its own folder.

    Returns the exit code and what the ranks printed. After `timeout_s` the launcher and its ranks are ended, and the
    exit code is None.
    """
    paths = [folder / name / "spec.json" for name in specs]
    for path, spec in zip(paths, specs.values(), strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(spec))
    config = ROOT / "configs" / "accelerate" / f"{accelerate}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += [str(ROOT / "tests" / "end_to_end" / script), *map(str, paths)]
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
    )
    try:
        output, _ = run.communicate(timeout=timeout_s)
        return run.returncode, output
    except subprocess.TimeoutExpired:
        # A launcher of several ranks ends them when it is asked to; they wait for one another and would outlive it
        # otherwise. A launcher of one rank does not, and has it in its own process group.
        run.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(timeout=40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        output, _ = run.communicate()
        return None, output
