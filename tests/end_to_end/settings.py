"""Random settings of a training run that stock TRL accepts, made from a seed."""

from __future__ import annotations

import random
from typing import Any

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
RATIOS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def random_settings(seed: int, ranks: int) -> dict[str, Any]:
    """Arguments of both trainers, of ours alone (`token_batches` and the like), and options of a spec of ranks.py."""
    rng = random.Random(seed)
    settings = {**_shape(rng, ranks), **_loss(rng), **_ours(rng), "max_steps": 4}
    settings["rollout"] = rng.choice(["skewed", "skewed", "masked"])
    settings["rewards"] = rng.choice([["signal_in_half"], ["vowels"], ["vowels", "even_length"]])
    for name, value, share in (
        ("mask_truncated_completions", True, 0.2),
        ("pad_to_multiple_of", 8, 0.3),
        ("max_grad_norm", 0.5, 0.3),
        ("activation_checkpointing", True, 0.2),
        ("off_policy_mask_threshold", 0.5, 0.2),
    ):
        if rng.random() < share:
            settings[name] = value
    return settings


def _shape(rng: random.Random, ranks: int) -> dict[str, Any]:
    """Sizes whose generation batch is made of whole groups."""
    while True:
        rows, accumulate, size = rng.choice([1, 2, 4]), rng.choice([1, 2, 4]), rng.choice([2, 4])
        generation = accumulate * rng.choice([1, 2])
        if rows * generation * ranks % size == 0 and 8 <= rows * generation * ranks <= 32:
            return {
                "per_device_train_batch_size": rows,
                "gradient_accumulation_steps": accumulate,
                "steps_per_generation": generation,
                "num_generations": size,
                "num_iterations": rng.choice([1, 1, 2]),
            }


def _loss(rng: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {
        "loss_type": rng.choice(LOSSES),
        "importance_sampling_level": rng.choice(["token", "token", "sequence"]),
        "scale_rewards": rng.choice(["group", "batch", "none"]),
        "beta": rng.choice([0.0, 0.0, 0.05]),
        "use_bias_correction_kl": rng.random() < 0.5,
        "epsilon_high": rng.choice([0.2, 0.3]),
    }
    if rng.random() < 0.3:
        tokens_only = found["loss_type"] == "vespo"  # TRL refuses it with ratios of sequences
        mode = rng.choice(RATIOS[:2] if tokens_only else RATIOS)
        found |= {"corrects_for_sampler": True, "vllm_importance_sampling_mode": mode}
    if rng.random() < 0.2:
        # Not 0.5: the median is a token's own entropy, and rounding decides whether equal ones are above it.
        found |= rng.choice([{"top_entropy_quantile": 0.45}, {"entropy_coef": 0.01}, {"delta": 4.0}])
    return found


def _ours(rng: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {"padding_free": rng.random() < 0.7, "shared_prefix": rng.random() < 0.7}
    if rng.random() < 0.5:
        found["max_tokens_per_micro_batch"] = rng.choice([30, 60, 100])
    return found
