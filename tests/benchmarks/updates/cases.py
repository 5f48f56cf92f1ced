"""What is trained on: groups of 8 whose completions and rewards are given, so that every trainer computes the same.

Owns the cases and the model. Knows nothing of measuring.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.support.builders import make_tokenizer

GROUP = 8
WORDS = 151_936  # of Qwen2.5's vocabulary


@dataclass(frozen=True)
class Case:
    """Groups of GROUP rows, `prompt` tokens before completions of `median` tokens, σ `sigma`, at most `longest`."""

    prompt: int
    median: int
    sigma: float
    silent: float  # share of groups without signal
    longest: int = 1024

    def lengths(self, rows: int, drawn: random.Random) -> list[int]:
        """Tokens of `rows` completions, drawn log-normally."""
        return [
            min(self.longest, max(1, round(self.median * math.exp(self.sigma * drawn.gauss(0, 1)))))
            for _ in range(rows)
        ]


CASES = {
    "half": Case(prompt=40, median=200, sigma=0.6, silent=0.5),
    "full": Case(prompt=40, median=200, sigma=0.6, silent=0.0),
    "equal": Case(prompt=40, median=256, sigma=0.0, silent=0.0),
    "prefix": Case(prompt=512, median=128, sigma=0.0, silent=0.0),
}


@dataclass(frozen=True)
class Shape:
    """A Qwen2's size."""

    hidden: int
    inner: int
    layers: int
    words: int | None = None  # None: the tokenizer's

    def save(self, folder: Path) -> str:
        """A model of random weights and a byte-level tokenizer, to load from `folder`."""
        tokenizer = make_tokenizer()
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=self.words or len(tokenizer),
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=2,
            tie_word_embeddings=self.words is not None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.05,
        )
        Qwen2ForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)


SMALL = Shape(hidden=128, inner=512, layers=4)
QWEN_HALF_B = Shape(hidden=896, inner=4864, layers=24, words=WORDS)  # Qwen2.5-0.5B's


def rollout_of(case: Case) -> Callable[..., dict[str, Any]]:
    """Completions of the case's lengths, the same for every trainer."""
    drawn = random.Random(0)

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        lengths = case.lengths(len(prompts), drawn)
        completions = [[drawn.randrange(3, 259) for _ in range(length)] for length in lengths]
        ids = trainer.processing_class(text=prompts)["input_ids"]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": [[0.0] * n for n in lengths]}

    return rollout


def reward_of(case: Case) -> Callable[..., list[float]]:
    """1 and 0 in turn, and 1 for all of the first groups, which have no signal."""

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        silent = round(case.silent * (len(completion_ids) // GROUP))
        return [float(row % 2) if row // GROUP >= silent else 1.0 for row in range(len(completion_ids))]

    return reward


def dataset_of(case: Case) -> Dataset:
    return Dataset.from_dict({"prompt": [chr(97 + index % 26) * case.prompt for index in range(64)]})


def useful_tokens(case: Case, rows: int) -> int:
    """Tokens of the rows with signal of one generation of `rows` rows, each prompt once."""
    lengths, groups = case.lengths(rows, random.Random(0)), rows // GROUP
    silent = round(case.silent * groups)
    return sum(lengths[silent * GROUP :]) + (groups - silent) * case.prompt
