"""The quickstart's task: words, a tokenizer of letters, a small Llama, and the weak policy that it starts from.

The task is to sort a word's letters: `dbca=` → `abcd`. The weak policy is learnt from a careless teacher, who sorts the
first four letters and mostly just copies the rest. A model that imitates the teacher is as careless, but some of its
samples are right, and these a reward can find.

Owns the data, the model and its warm-up. Knows nothing of GRPO or of rewards.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LENGTHS = range(4, 9)
CARE = 4
"""The number of letters that the careless teacher always sorts."""
CARELESS_SHARE = 0.7
"""The share of longer words that it sorts no further: above a half, so greedy decoding follows it; below one by enough
that a sample in a few is right."""
MAX_NEW_TOKENS = max(LENGTHS) + 2


@dataclass(frozen=True)
class Task:
    """Words to train on and words held out; no word is in both."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def make_task(rng: random.Random, *, train_words: int, held_out_words: int) -> Task:
    """Random words of four to eight letters, each once."""
    words: dict[str, None] = {}
    while len(words) < train_words + held_out_words:
        words[make_word(rng)] = None
    everything = list(words)
    return Task(tuple(everything[held_out_words:]), tuple(everything[:held_out_words]))


def make_word(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.choice(LENGTHS)))


def prompt_of(word: str) -> str:
    return f"{word}="


def answer_of(word: str) -> str:
    return "".join(sorted(word))


def careless_answer(word: str, rng: random.Random) -> str:
    """What the teacher shows: a right answer, or the letters after the fourth as they came."""
    careless = len(word) > CARE and rng.random() < CARELESS_SHARE
    return answer_of(word[:CARE]) + word[CARE:] if careless else answer_of(word)


# ---------------------------------------------------------------------------------------------------- tokenizer, model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter."""
    tokens = ["<pad>", "<eos>", "<unk>", "=", *string.ascii_lowercase]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of two layers and 84 thousand weights, untrained. Its weights come from torch's global generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


# -------------------------------------------------------------------------------------------------------------- warm-up


def warm_up(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    words: Sequence[str],
    rng: random.Random,
    *,
    steps: int,
    batch_size: int = 128,
    on_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Supervised steps on the careless teacher's answers to `words`; `on_step` is told each step's loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    model.train()
    for _ in range(steps):
        batch = rng.choices(words, k=batch_size)
        ids_NT, labels_NT = _supervise(tokenizer, batch, [careless_answer(word, rng) for word in batch])
        loss = model(input_ids=ids_NT, labels=labels_NT).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step(loss.item())


def _supervise(
    tokenizer: PreTrainedTokenizerFast, words: Sequence[str], answers: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right, and labels that are -100 where nothing is to be learnt."""
    rows = [
        tokenizer(f"{prompt_of(word)}{answer}{tokenizer.eos_token}").input_ids
        for word, answer in zip(words, answers, strict=True)
    ]
    ids_NT = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    labels_NT = torch.full_like(ids_NT, -100)
    for row, (word, ids) in enumerate(zip(words, rows, strict=True)):
        ids_NT[row, : len(ids)] = torch.tensor(ids)
        labels_NT[row, len(word) + 1 : len(ids)] = torch.tensor(ids[len(word) + 1 :])
    return ids_NT, labels_NT


# ----------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def answer_greedily(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, words: Sequence[str]) -> list[str]:
    """What the model answers without sampling, a text a word."""
    model.eval()
    batch = tokenizer([prompt_of(word) for word in words], return_tensors="pt", padding=True)
    ids_NT = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
    )
    texts: list[str] = tokenizer.batch_decode(ids_NT[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return texts


def accuracy(words: Sequence[str], answers: Sequence[str]) -> float:
    """The share of answers that are right."""
    return sum(answer_of(word) == answer for word, answer in zip(words, answers, strict=True)) / len(words)
