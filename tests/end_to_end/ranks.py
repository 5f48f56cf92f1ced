"""What each rank of an end-to-end test runs under `accelerate launch`: trains as JSON files say, one after another.

    accelerate launch … tests/end_to_end/ranks.py SPEC.json…

The first rank writes the weights, the log, the completions and their advantages beside each spec. Several runs in one
launch, since starting two ranks costs more than training them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.end_to_end.tape import Player, Tape, record
from tests.support import scoring
from tests.support.builders import make_dataset
from tests.support.memory import SavedTensors


def fixed_rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Completions that depend on the prompt and the row's place in the global batch alone, not on the ranks."""
    first = trainer.accelerator.process_index * len(prompts)
    texts = [f"{prompt[-1]} and {'o' * ((first + index) * 7 % 5)}" for index, prompt in enumerate(prompts)]
    tokenize = trainer.processing_class
    completion_ids = [ids[:12] for ids in tokenize(text=texts)["input_ids"]]
    logprobs = [[0.0] * len(ids) for ids in completion_ids]
    return {"prompt_ids": tokenize(text=prompts)["input_ids"], "completion_ids": completion_ids, "logprobs": logprobs}


def skewed_rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Completions of 1 to 24 tokens, most of them short, that depend on prompt, place and step alone."""
    first = trainer.accelerator.process_index * len(prompts)
    keys = [f"{prompt} {first + index} {trainer._step}" for index, prompt in enumerate(prompts)]
    digests = [hashlib.md5(key.encode()).hexdigest() for key in keys]
    texts = [digest[: 1 + int(23 * (int(digest, 16) / 16**32) ** 3)] for digest in digests]
    return _sampled(prompts, texts, trainer)


def _sampled(prompts: list[Any], texts: list[str], trainer: Any) -> dict[str, Any]:
    """Texts as a sampling engine would return them, with log-probabilities that are near those of a tiny model."""
    tokenize = trainer.processing_class
    completion_ids = tokenize(text=texts)["input_ids"]
    logprobs = [[-5.5 + (token * 37 + place) % 11 / 11 for place, token in enumerate(ids)] for ids in completion_ids]
    return {"prompt_ids": tokenize(text=prompts)["input_ids"], "completion_ids": completion_ids, "logprobs": logprobs}


def masked_rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """As `skewed_rollout`, with every third token from an environment: it is in the text and not in the loss."""
    found = skewed_rollout(prompts, trainer)
    return {
        **found,
        "env_mask": [[int(place % 3 != 1) for place in range(len(ids))] for ids in found["completion_ids"]],
    }


def short_rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Completions of one token each on the first rank, and of 2 to 9 tokens on the others."""
    rank = trainer.accelerator.process_index
    texts = [f"{index}{'aeiou' * 2}"[: 2 + index % 8 if rank else 1] for index in range(len(prompts))]
    return _sampled(prompts, texts, trainer)


ROLLOUTS = {"fixed": fixed_rollout, "skewed": skewed_rollout, "masked": masked_rollout, "short": short_rollout}


def main(path: Path) -> None:
    spec = json.loads(path.read_text())
    remote = spec["trainer"] == "remote"
    config, trainer_class = (RemoteGRPOConfig, RemoteGRPOTrainer) if remote else (GRPOConfig, GRPOTrainer)
    player = Player(Path(spec["plays"])) if spec.get("plays") else None
    trainer = trainer_class(
        spec["model"],
        reward_funcs=[player.reward]
        if player
        else [getattr(scoring, name) for name in spec.get("rewards", [])] or None,
        args=config(str(path.parent / "run"), **spec["args"]),
        train_dataset=make_dataset(),
        rollout_func=player.rollout if player else ROLLOUTS.get(spec.get("rollout", "")),
    )
    tape: Tape = []
    if player:
        player.give_old_log_probs(trainer)
    if spec["args"].get("dynamic_sampling"):
        record(trainer, tape)
    if spec.get("corrects_for_sampler"):
        correct_for_sampler(trainer)
    if remote and spec.get("room_bytes"):
        trainer._memory_meter = SavedTensors(spec["room_bytes"][trainer.accelerator.process_index])
    if spec.get("late_s") and trainer.accelerator.process_index == 1:
        be_late(trainer, spec["late_s"])
    batches: list[dict[str, Any]] = []
    keep_batches(trainer, batches)
    trainer.train()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathers ZeRO-3's shards, so every rank calls it
    if trainer.accelerator.is_main_process:
        torch.save({name: value.float().cpu() for name, value in state.items()}, path.with_suffix(".pt"))
        path.with_suffix(".tape").write_text(json.dumps(tape))
        path.with_suffix(".out").write_text(json.dumps({"log": trainer.state.log_history, "batches": batches}))
    trainer.accelerator.wait_for_everyone()  # a spec may play what the one before it wrote


def correct_for_sampler(trainer: Any) -> None:
    """Importance ratios between the policy and the sampling engine, as with vLLM, which the rollout stands in for."""
    trainer.use_vllm = True
    trainer.vllm_generation, trainer._last_loaded_step = SimpleNamespace(sync_weights=lambda: None), 0


def be_late(trainer: Any, late_s: float) -> None:
    """This rank reaches each collection of scores later than the others."""
    calculate = trainer._calculate_rewards

    def late(*args: Any) -> Any:
        time.sleep(late_s)
        return calculate(*args)

    trainer._calculate_rewards = late


def keep_batches(trainer: Any, batches: list[dict[str, Any]]) -> None:
    """Keeps each generation's completions and advantages, which TRL gathers over the ranks for its own log."""
    generate = trainer._generate_and_score_completions

    def keeping(inputs: Any) -> Any:
        result = generate(inputs)
        batches.append(
            {"completions": list(trainer._logs["completion"]), "advantages": list(trainer._logs["advantages"])}
        )
        return result

    trainer._generate_and_score_completions = keeping


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(Path(name))
