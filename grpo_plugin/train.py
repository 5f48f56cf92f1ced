"""`grpo train`, and what `accelerate launch -m grpo_plugin.train` runs.

    job = parse(argv)        YAML and command line → arguments
    check(job)               what can be found out in a second, before data and model are loaded
    trainer = build(job)     data, model, reward service
    run(trainer, job)        train, save, evaluate

Owns this order and the checks. Knows nothing of how rewards are computed: that is the trainer's. `grpo quickstart`
calls the same `train`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import trl.rewards
import yaml
from rich.console import Console
from transformers import AutoConfig, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from grpo_plugin.cli.callbacks import MetricsFile, ProgressReport
from grpo_plugin.cli.data import DataArguments, check_path, load_splits
from grpo_plugin.cli.interrupt import end_of, interruptible, say_once
from grpo_plugin.cli.quiet import hush_libraries, hush_progress_bars
from grpo_plugin.config import RemoteGRPOConfig
from grpo_plugin.errors import UsageError
from grpo_plugin.trainer.remote import RemoteGRPOTrainer
from reward_server.errors import RewardServerError


@dataclass
class RewardArguments:
    """Reward functions that run in the trainer's own process; the service's are RemoteGRPOConfig's."""

    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions to run inside the trainer: names of trl.rewards (accuracy_reward), "
            "module:attribute, or path/to/file.py:attribute."
        },
    )


@dataclass(frozen=True)
class Job:
    """A parsed and checked configuration."""

    data: DataArguments
    rewards: RewardArguments
    training: RemoteGRPOConfig
    model: ModelConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says; returns the exit code. An error whose message explains it has no traceback."""
    try:
        train(sys.argv[1:] if argv is None else argv)
    except (UsageError, RewardServerError) as error:
        say_once(f"error: {error}")
        return 1
    except KeyboardInterrupt as interrupt:
        return end_of(interrupt)
    return 0


def train(
    argv: Sequence[str], *, callbacks: Sequence[TrainerCallback] | None = None, quiet: bool = False
) -> RemoteGRPOTrainer:
    """Parses, checks, builds and runs; returns the trainer after its run.

    Raises UsageError, RewardServerError of the service, or Interrupted after Ctrl-C or SIGTERM.

    `callbacks` replace the progress report; `quiet` leaves out the closing words.
    """
    job = parse(argv)
    hush_libraries()
    check(job)
    with interruptible(job.training.output_dir) as closing:
        trainer = build(job, callbacks)
        closing.append(trainer.close)
        try:
            hush_progress_bars()
            run(trainer, job)
        finally:
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, ProgressReport):
                    callback.stop()
    if not quiet:
        say_goodbye(trainer)
    return trainer


# --------------------------------------------------------------------------------------------------------------- config


class _Parser(TrlParser):
    """TRL's parser, whose errors are one line in place of three hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (grpo train --help lists every option)")


def parse(argv: Sequence[str]) -> Job:
    """The arguments of YAML file and command line, each checked by its own class. Raises UsageError."""
    parser = _Parser((DataArguments, RewardArguments, RemoteGRPOConfig, ModelConfig), prog="grpo train")
    parser.allow_abbrev = False
    parser.set_defaults(**_defaults_of_this_machine())
    try:
        with warnings.catch_warnings():
            # TRL 1.16 sets an option by default that transformers 5.23 has renamed; the user cannot change that.
            warnings.filterwarnings(
                "ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning
            )
            *parsed, in_yaml, in_shell = parser.parse_args_and_config(
                list(argv), return_remaining_strings=True, separate_remaining_strings=True
            )
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError(f"there is no config file {error.filename} (working folder: {Path.cwd()})") from error
    except yaml.YAMLError as error:
        raise UsageError(f"the config file is not YAML: {' '.join(str(error).split())}") from error
    except IndexError as error:  # raised by TRL's parser
        raise UsageError("--config needs the path of a YAML file") from error
    except (ValueError, TypeError, ImportError) as error:  # raised by TrainingArguments and its subclasses
        raise UsageError(str(error)) from error
    _refuse_unknown(in_yaml[::2], in_shell, known=[action.dest for action in parser._actions])
    return Job(*parsed)


def _defaults_of_this_machine() -> dict[str, Any]:
    """TRL's defaults for a machine without an accelerator; values of the user take precedence.

    With DeepSpeed the backend must be named: accelerate 1.15 (state.py, `_prepare_backend`) finds none by itself and
    would run every rank alone.
    """
    if torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true":
        return {}
    defaults: dict[str, Any] = {"bf16": False, "dataloader_pin_memory": False}
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed, which transformers imports, warns that it is
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        return {**defaults, "ddp_backend": "gloo"}
    return {**defaults, "use_cpu": True}


def _refuse_unknown(in_yaml: Sequence[str], in_shell: Sequence[str], known: Sequence[str]) -> None:
    options = [word.split("=")[0] for word in in_shell if word.startswith("--")] or list(in_shell)
    for words, where in ((in_yaml, "in the config file"), (options, "on the command line")):
        if words:
            raise UsageError("; ".join(f"unknown option {_named(word, known)}" for word in words) + f" ({where})")


def _named(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word.lstrip("-"), known, n=1)
    return f"{word.lstrip('-')!r}" + (f", did you mean {close[0]!r}?" if close else "")


# --------------------------------------------------------------------------------------------------------------- checks


def check(job: Job) -> None:
    """Checks what can be checked in a second, before data and model are loaded. Raises UsageError."""
    training = job.training
    if not (job.rewards.reward_funcs or training.reward_endpoint or training.reward_config):
        raise UsageError(
            "nothing gives a reward: set reward_config (a file for the embedded service), reward_endpoint (a running "
            "one) or reward_funcs (functions in this process)"
        )
    if training.reward_config and not Path(training.reward_config).is_file():
        raise UsageError(f"reward_config: there is no {training.reward_config} (working folder: {Path.cwd()})")
    for option in ("dataset_name", "eval_dataset_name"):
        if name := getattr(job.data, option):
            check_path(name, option)
    _check_model(job.model)
    resolve_checkpoint(training)


def _check_model(model: ModelConfig) -> None:
    name = model.model_name_or_path
    if name is None:
        raise UsageError("model_name_or_path is missing: set it to a model of the hub or a folder of save_pretrained")
    if Path(name).expanduser().is_dir() and any(Path(name).expanduser().glob("*config.json")):
        return  # a model, or an adapter
    try:
        AutoConfig.from_pretrained(name, revision=model.model_revision)
    except (OSError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UsageError(
            f"model_name_or_path: {name!r} is neither a folder of a model (working folder: {Path.cwd()}) nor a model "
            f"that the hub gives: {lines[0]}"
        ) from error


def resolve_checkpoint(training: RemoteGRPOConfig) -> str | None:
    """The folder to resume from. `true` and `last` mean the newest checkpoint of output_dir. Raises UsageError."""
    wish = training.resume_from_checkpoint
    if wish is None or str(wish).lower() in ("false", "no", "none"):
        return None
    if str(wish).lower() in ("true", "last"):
        folder = training.output_dir
        last = get_last_checkpoint(folder) if Path(folder).is_dir() else None
        if last is None:
            raise UsageError(f"resume_from_checkpoint: {folder} has no checkpoint; leave it out to start anew")
        return last
    if not (Path(wish) / "trainer_state.json").is_file():
        raise UsageError(
            f"resume_from_checkpoint: {wish} is no checkpoint; give a folder such as {training.output_dir}/"
            "checkpoint-500, or true for the newest one"
        )
    return str(wish)


# -------------------------------------------------------------------------------------------------------------- trainer


def build(job: Job, callbacks: Sequence[TrainerCallback] | None = None) -> RemoteGRPOTrainer:
    """Loads data and model and connects to the service. Raises UsageError, RewardServerError."""
    training = job.training
    reward_funcs = [load_function(name) for name in job.rewards.reward_funcs or []]
    with training.main_process_first(desc="loading the data"):
        train_rows, eval_rows = load_splits(job.data, seed=training.seed, evaluates=training.do_eval)
    # As trl.scripts.grpo does: the fields of ModelConfig, then model_init_kwargs, which may override them.
    training.model_init_kwargs = {
        "revision": job.model.model_revision,
        "attn_implementation": job.model.attn_implementation,
        "dtype": job.model.dtype,
        **(training.model_init_kwargs or {}),
    }
    try:
        trainer = RemoteGRPOTrainer(
            model=job.model.model_name_or_path,
            reward_funcs=reward_funcs or None,
            args=training,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            quantization_config=get_quantization_config(job.model),
            peft_config=get_peft_config(job.model),
        )
    except RewardServerError:
        raise
    except (ValueError, ImportError) as error:  # raised by TRL for settings that it refuses
        raise UsageError(str(error)) from error
    for theirs in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(theirs)
    for ours in [MetricsFile(), *([ProgressReport()] if callbacks is None else callbacks)]:
        trainer.add_callback(ours)
    return trainer


def load_function(name: str) -> Callable[..., Any]:
    """A reward function by its name in trl.rewards, module:attribute or file.py:attribute. Raises UsageError."""
    if name.isidentifier():
        if name in trl.rewards.__all__ and name.endswith("_reward"):
            return getattr(trl.rewards, name)
        ready = ", ".join(known for known in trl.rewards.__all__ if known.endswith("_reward"))
        raise UsageError(f"reward_funcs: {name!r} is none of trl.rewards ({ready}); give others as module:attribute")
    source, separator, attribute = name.rpartition(":") if ":" in name else name.rpartition(".")
    if not source or not separator:
        raise UsageError(f"reward_funcs: {name!r} must have the form module:attribute or path/to/file.py:attribute")
    try:
        function = getattr(_import(source), attribute)
    except Exception as error:  # the user's module may raise anything
        raise UsageError(f"reward_funcs: {name!r} does not import\n{traceback.format_exc().rstrip()}") from error
    if not callable(function):
        raise UsageError(f"reward_funcs: {name!r} is {function!r:.80}, which cannot be called")
    return function


def _import(source: str) -> Any:
    """The module of that name, which may lie in the working folder, or the module in a .py file."""
    if not source.endswith(".py"):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(source)
    path = Path(source).expanduser().resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------------------------ run


def run(trainer: RemoteGRPOTrainer, job: Job) -> None:
    """Trains, saves model, tokenizer and state into output_dir, and evaluates if there is an evaluation set."""
    training = job.training
    trainer.train(resume_from_checkpoint=resolve_checkpoint(training))
    trainer.save_model(training.output_dir)
    trainer.save_state()
    if trainer.eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=job.data.dataset_name)
    trainer.accelerator.wait_for_everyone()  # the embedded service of one rank serves them all
    trainer.close()


def say_goodbye(trainer: RemoteGRPOTrainer) -> None:
    """Says on rank 0 where the results are and what to type next; then ends the trackers and the process group."""
    if trainer.is_world_process_zero():
        folder = trainer.args.output_dir
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"\nmodel, tokenizer and metrics are in [bold]{folder}[/]")
        console.print(f"draw the run with [bold cyan]grpo plot {folder}[/]")
    trainer.end()


if __name__ == "__main__":
    sys.exit(main())
