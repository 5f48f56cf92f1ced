"""Starts scripts and modules as `accelerate launch` does, on ranks that need not import anything.

To import torch, transformers and TRL takes longer than most runs here: twice on two ranks, and in the launcher again.
So multiprocessing's fork server imports them once, the launcher is forked from it, and the ranks from the launcher. All
else is accelerate's and torchrun's own: the meaning of a config, the ranks' environment, what happens when one fails.
`tests/grpo_plugin/test_train.py` starts the command `accelerate launch` itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.commands import launch as accelerate_launch
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from torch.distributed import run as torchrun
from torch.distributed.launcher.api import elastic_launch

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(
    [
        "accelerate.commands.launch",
        "transformers.models.qwen2.modeling_qwen2",
        "grpo_plugin.trainer.remote",
    ]
)


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
    return run_on_ranks(accelerate, [str(ROOT / "tests" / "end_to_end" / script), *map(str, paths)], folder, timeout_s)


def run_on_ranks(accelerate: str, command: Sequence[str], folder: Path, timeout_s: float) -> tuple[int | None, str]:
    """What `accelerate launch` would do with the command and a shipped config. The folder takes what is printed."""
    config = ROOT / "configs" / "accelerate" / f"{accelerate}.yaml"
    printed = folder / "printed"
    with environment():
        arguments = (["--config_file", str(config), *command], dict(os.environ), printed)
        launcher = FORK_SERVER.Process(target=_launch, args=arguments)
        launcher.start()
    launcher.join(timeout_s)
    code = launcher.exitcode
    if code is None:
        # A launcher of several ranks ends them when it is asked to; they wait for one another and would outlive it
        # otherwise.
        launcher.terminate()
        launcher.join(40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid or 0, signal.SIGKILL)
    return code, printed.read_text(errors="replace")


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """The fork server, which the first launch starts, and the launcher have these variables."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _launch(command: Sequence[str], variables: Mapping[str, str], printed: Path) -> None:
    """The life of a launcher, in a session of its own."""
    os.setsid()
    os.environ.update(variables)
    with printed.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    gc.freeze()  # each training collects garbage, which takes longer than the training if it looks at every module
    torchrun.run = _fork_ranks
    accelerate_launch.simple_launcher = _be_the_only_rank
    accelerate_launch.launch_command(accelerate_launch.launch_command_parser().parse_args(command))


def _fork_ranks(args: Any) -> None:
    """As `torchrun.run`, which would start an interpreter for each rank."""
    config, *_ = torchrun.config_from_args(args)
    config.start_method = "fork"
    elastic_launch(config, _be_the_rank)(args)


def _be_the_only_rank(args: Any) -> None:
    """As accelerate's launcher of a single rank, which would start an interpreter."""
    _, variables = prepare_simple_launcher_cmd_env(args)
    os.environ.update(variables)
    _be_the_rank(args)


def _be_the_rank(args: Any) -> None:
    sys.argv = [args.training_script, *args.training_script_args]
    start = runpy.run_module if args.module else runpy.run_path
    try:
        start(args.training_script, run_name="__main__")
    except Exception:
        traceback.print_exc()  # torchrun shows that of one rank only
        raise
