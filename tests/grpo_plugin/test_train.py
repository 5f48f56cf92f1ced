"""`grpo train`: configuration, checks before anything is loaded, and short real runs with the embedded service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from grpo_plugin.errors import UsageError
from grpo_plugin.train import load_function, main, parse, train
from reward_server.config import load_config
from tests.end_to_end.launching import run_on_ranks
from tests.support.servers import SCORING, function

CONFIGS = Path(__file__).parents[2] / "configs"
RUN = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 8,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_steps": 1,
    "report_to": "none",
    "columns": {"prompt": "question", "letter": "letter"},
}


@pytest.fixture
def config(tmp_path: Path, tiny_model: str) -> Path:
    """A config file of a run that works: tiny model, eight rows, embedded service."""
    rows = [{"question": f"say {letter}", "letter": letter} for letter in "abcdefgh"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump({"workers": 1, "scorers": [function("even_length")]}))
    paths = {
        "model_name_or_path": tiny_model,
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "reward_config": str(tmp_path / "reward.yaml"),
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({**RUN, **paths}))
    return path


def logs_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "reward" in line]


# ------------------------------------------------------------------------------------------------------ shipped configs


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("accelerate/*.yaml")), ids=lambda path: path.stem)
def test_every_accelerate_config_is_one_that_accelerate_reads(path: Path) -> None:
    loaded = load_config_from_file(str(path))
    assert loaded.num_processes >= 1
    stage = path.stem.removeprefix("cpu_").removesuffix("_offload").removeprefix("zero")
    if stage.isdigit():
        assert loaded.deepspeed_config["zero_stage"] == int(stage)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("reward/*.yaml")), ids=lambda path: path.stem)
def test_every_reward_config_is_one_that_the_server_reads(path: Path) -> None:
    assert load_config(path).scorers


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("train/*.yaml")), ids=lambda path: path.stem)
def test_every_training_config_has_known_options_only(path: Path, tmp_path: Path) -> None:
    job = parse(["--config", str(path), "--bf16", "false", "--output_dir", str(tmp_path)])
    assert job.training.max_completion_length


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "unknown option 'learning_rat', did you mean 'learning_rate'? (on the command line)"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--num_generations", "3"], "num_generations (3) must divide the generation batch (4"),
        (["--model_name_or_path", "./nowhere"], "model_name_or_path: './nowhere' is neither a folder of a model"),
        (["--dataset_name", "nowhere.jsonl"], "dataset_name: there is no nowhere.jsonl"),
        (["--reward_config", "nowhere.yaml"], "reward_config: there is no nowhere.yaml"),
        (["--columns", '{"prompt": "text"}'], "columns names 'text', and the data has 'question', 'letter'"),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint: "),
        (["--reward_funcs", "no_such_reward"], "'no_such_reward' is none of trl.rewards (accuracy_reward"),
        (["--reward_funcs", "no.such.module:f"], "ModuleNotFoundError"),
    ],
)
def test_bad_input_is_one_clear_error_and_exit_code_1(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--config", str(config), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "error: " in error


def test_an_unknown_key_of_the_file_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text() + "num_generation: 4\n")
    assert main(["--config", str(config)]) == 1
    assert "unknown option 'num_generation', did you mean 'num_generations'? (in the config file)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "message"), [(None, "there is no config file"), ("- a\n", "YAML mapping"), ("a: [", "is not YAML")]
)
def test_a_config_file_that_is_none_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        parse(["--config", str(path)])


def test_a_run_without_any_reward_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load(config.read_text())
    del settings["reward_config"]
    config.write_text(yaml.safe_dump(settings))
    assert main(["--config", str(config)]) == 1
    assert "nothing gives a reward: set reward_config" in capsys.readouterr().err


def test_a_local_function_is_found_by_file_and_by_module() -> None:
    assert load_function(f"{SCORING}:vowels").__name__ == "vowels"
    assert load_function("trl.rewards:accuracy_reward") is load_function("accuracy_reward")


# ----------------------------------------------------------------------------------------------------------- real runs


@pytest.mark.slow
def test_a_run_leaves_model_state_and_metrics_in_its_folder_and_resumes(config: Path, tmp_path: Path) -> None:
    train(["--config", str(config)])
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} >= {"model.safetensors", "tokenizer.json", "trainer_state.json"}
    assert [log["step"] for log in logs_of(run)] == [1, 2]
    assert all("rewards/even_length/mean" in log for log in logs_of(run))

    trainer = train(["--config", str(config), "--max_steps", "3", "--resume_from_checkpoint", "true"])
    assert trainer.state.global_step == 3
    assert [log["step"] for log in logs_of(run)] == [1, 2, 3]


@pytest.mark.slow
def test_local_functions_and_evaluation_on_held_out_rows(config: Path, tmp_path: Path) -> None:
    options = ["--reward_funcs", f"{SCORING}:vowels", "--eval_strategy", "steps", "--eval_steps", "2"]
    train(["--config", str(config), *options, "--eval_size", "4", "--per_device_eval_batch_size", "4"])
    assert {"rewards/vowels/mean", "rewards/even_length/mean"} <= set(logs_of(tmp_path / "run")[0])
    assert "eval_reward" in json.loads((tmp_path / "run" / "eval_results.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("accelerate", ["cpu", "cpu_ddp", "cpu_zero2"])
def test_ranks_of_each_kind_of_config_run_the_module(config: Path, tmp_path: Path, accelerate: str) -> None:
    code, printed = run_on_ranks(
        accelerate, ["-m", "grpo_plugin.train", "--config", str(config)], tmp_path, timeout_s=380
    )
    assert code == 0, printed
    assert_trained(tmp_path / "run", printed, ranks=1 if accelerate == "cpu" else 2)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_command_accelerate_launch_runs_the_module_under_zero3(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    command += [str(CONFIGS / "accelerate" / "cpu_zero3.yaml"), "-m", "grpo_plugin.train", "--config", str(config)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_trained(tmp_path / "run", done.stdout, ranks=2)


def assert_trained(run: Path, printed: str, ranks: int) -> None:
    assert "reward" in printed
    assert [log["step"] for log in logs_of(run)] == [1, 2]
    assert [log["reward/groups"] for log in logs_of(run)] == [ranks, ranks]
