"""The command `grpo`: train, quickstart, plot.

Owns the subcommands and the form of errors: one line on stderr and an exit code. Imports neither torch nor trl before a
subcommand needs them, so that `grpo --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

import grpo_plugin
from grpo_plugin.errors import UsageError
from reward_server.errors import RewardServerError

EXAMPLES = """\
examples:
  grpo quickstart                                        see GRPO work, in two minutes and without a GPU
  grpo train --config configs/train/gsm8k.yaml           train; any field may follow, as --learning_rate 2e-6
  accelerate launch --config_file configs/accelerate/zero3.yaml -m grpo_plugin.train --config …
  grpo plot runs/gsm8k                                   draw a run
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, 1 after an error, 2 for a wrong command line, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:  # its options are TrlParser's, which has them from dataclasses
        return _train(arguments[1:])
    options = _parser().parse_args(arguments)
    return reporting(lambda: options.run(options))


def reporting(act: Callable[[], None]) -> int:
    """Runs `act`; returns the exit code. An error whose message explains it is printed without a traceback."""
    try:
        act()
    except (UsageError, RewardServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "stopped", file=sys.stderr)
        return getattr(interrupt, "exit_code", 130)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="grpo",
        description="TRL's GRPO with rewards from a service.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"grpo-plugin {grpo_plugin.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train a model as a YAML file says", add_help=False)
    _add_quickstart(commands)
    _add_plot(commands)
    return parser


def _add_quickstart(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "quickstart",
        help="watch a small model get better, without GPU or network",
        description="Makes a small model that sorts letters badly, and trains it by GRPO with rewards from an "
        "embedded reward service.",
    )
    parser.add_argument("--output-dir", metavar="DIR", help="run folder (default: runs/quickstart-<timestamp>)")
    parser.add_argument("--seed", type=int, default=0, help="of data, model and sampling (default: 0)")
    parser.add_argument("--max-steps", type=int, metavar="N", help="GRPO steps (default: as the shipped config says)")
    parser.add_argument(
        "--constant-reward",
        action="store_true",
        help="reward everything alike: the control experiment, in which nothing is learnt",
    )
    parser.set_defaults(run=_quickstart)


def _add_plot(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("plot", help="draw a run folder's metrics into a PNG")
    parser.add_argument("run_folder", metavar="RUN", help="the output_dir of a run, finished or not")
    parser.add_argument("--output", metavar="FILE", help="where to write (default: RUN/plot.png)")
    parser.set_defaults(run=_plot)


def _train(arguments: list[str]) -> int:
    try:
        with _train_extra():
            from grpo_plugin.train import main as train_main  # noqa: PLC0415 - imports torch
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return train_main(arguments)


@contextlib.contextmanager
def _train_extra() -> Iterator[None]:
    """Around imports that need an extra; a missing package is named with the way to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"this command needs {error.name}: pip install 'grpo-plugin[train]'") from error


def _quickstart(options: argparse.Namespace) -> None:
    with _train_extra():
        from grpo_plugin.cli.quickstart.run import run  # noqa: PLC0415 - imports torch

    run(
        output_dir=options.output_dir,
        seed=options.seed,
        max_steps=options.max_steps,
        constant_reward=options.constant_reward,
    )


def _plot(options: argparse.Namespace) -> None:
    with _train_extra():
        from grpo_plugin.cli.plot import plot_run  # noqa: PLC0415 - imports matplotlib

    print(plot_run(options.run_folder, options.output))
