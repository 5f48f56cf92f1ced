"""Ctrl-C and SIGTERM during real runs with an embedded service: one line, no traceback of ours, no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_plugin.cli.interrupt import Interrupted, interruptible, what_is_left
from tests.grpo_plugin.cli.test_steps_without_scores import config
from tests.support.processes import descendants, is_alive, wait_until

ROOT = Path(__file__).parents[3]
TRAIN = ["-m", "grpo_plugin.train"]
LAUNCH = [
    "-m",
    "accelerate.commands.accelerate_cli",
    "launch",
    "--config_file",
    f"{ROOT}/configs/accelerate/cpu_ddp.yaml",
]


def interrupted(command: list[str], number: signal.Signals) -> tuple[int, str]:
    """Runs a command until it has trained for three steps, signals its process group; exit code and what it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("step 3/"):
                break
        family = descendants(process.pid)
        assert len(family) >= 2, said  # the service and its worker, at least
        os.killpg(process.pid, number)
        said += list(process.stdout)
        code = process.wait(60)
    assert wait_until(lambda: not any(map(is_alive, family)), 10)
    return code, "".join(said)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_ends_a_run_with_one_line_that_names_the_last_checkpoint(
    tiny_model: str, tmp_path: Path, number: signal.Signals, name: str
) -> None:
    path = config(tmp_path, tiny_model, "vowels", max_steps=5000)
    code, said = interrupted([*TRAIN, "--config", path], number)
    assert code == 128 + number
    assert "Traceback" not in said
    assert "Task exception" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"stopped by {name}; the last checkpoint is {tmp_path}/run/checkpoint-")
    assert last.endswith("(go on with --resume_from_checkpoint true)")


@pytest.mark.slow
def test_with_two_ranks_the_line_is_said_once_and_the_ranks_show_no_traceback(tiny_model: str, tmp_path: Path) -> None:
    path = config(tmp_path, tiny_model, "vowels", max_steps=5000)
    code, said = interrupted([*LAUNCH, *TRAIN, "--config", path], signal.SIGINT)
    assert code != 0
    assert said.count("stopped by Ctrl-C; the last checkpoint is") == 1
    assert "Task exception" not in said
    assert "ChildEndedError" not in said
    assert said.count("Traceback") <= 1  # torchrun's own: SignalException


def test_a_run_folder_without_checkpoint_is_said(tmp_path: Path) -> None:
    assert what_is_left(signal.SIGINT, str(tmp_path)) == (
        f"stopped by Ctrl-C; {tmp_path} has no checkpoint yet (save_steps says how often one is written)"
    )


def test_what_follows_from_a_signal_is_not_shown_and_all_is_closed(tmp_path: Path) -> None:
    closed: list[int] = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def run() -> None:
        with interruptible(str(tmp_path)) as closing:
            closing += [lambda: closed.append(1), lambda: int("x"), lambda: closed.append(2)]  # type: ignore[list-item]
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pause()
            except KeyboardInterrupt as interrupt:
                raise RuntimeError("the connection was closed by a peer") from interrupt

    with pytest.raises(Interrupted, match="stopped by SIGTERM") as caught:
        run()
    assert caught.value.exit_code == 143
    assert closed == [1, 2]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_without_a_signal_errors_pass_and_the_handlers_are_as_before(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError, match="of the run"), interruptible(str(tmp_path)):
        raise RuntimeError("of the run")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
