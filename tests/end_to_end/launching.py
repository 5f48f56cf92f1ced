"""Starts scripts of this folder under `accelerate launch`, as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def launch(accelerate: str, script: str, folder: Path, **specs: dict[str, Any]) -> tuple[int, str]:
    """Runs a script on the ranks of a shipped accelerate config, with one spec.json a spec, each in its own folder.

    Returns the exit code and what the ranks printed.
    """
    paths = [folder / name / "spec.json" for name in specs]
    for path, spec in zip(paths, specs.values(), strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(spec))
    config = ROOT / "configs" / "accelerate" / f"{accelerate}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += [str(ROOT / "tests" / "end_to_end" / script), *map(str, paths)]
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=360, env=env, check=False
    )
    return run.returncode, run.stdout
