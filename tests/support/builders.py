"""Small things that tests are made of: groups, a tokenizer, a model, a dataset. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward_server.types import Completion, Group, GroupScores, Score, ScorerScores, Status

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_group(completions: Sequence[Any] = ("a", "b"), prompt: Any = "p", **names: Any) -> Group:
    """A group of text or message completions."""
    return Group(prompt, tuple(Completion(content) for content in completions), **{"group_id": "g", **names})


def make_scores(*columns: Sequence[float | None], group_id: str = "g", weight: float = 1.0) -> GroupScores:
    """An answer with a scorer s0, s1, … for each column; None is not applicable."""
    scorers = tuple(
        ScorerScores(f"s{index}", "1", weight, tuple(_score(value) for value in column))
        for index, column in enumerate(columns)
    )
    return GroupScores(group_id, scorers, config_digest="d")


def _score(value: float | None) -> Score:
    return Score(Status.NOT_APPLICABLE) if value is None else Score(Status.OK, value)


def make_tokenizer() -> Any:
    """A byte-level tokenizer of 256 bytes and three specials, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 - only tests of models pay for it
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<pad>", "<eos>", "<bos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def save_tiny_model(folder: Path, seed: int = 0, kind: str = "qwen2", **options: Any) -> Path:
    """A causal LM of some 20,000 parameters (a Qwen2 by default) and its tokenizer, in a folder to load from."""
    import torch  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    config = AutoConfig.for_model(
        kind,
        **{**({"n_embd": 32, "n_layer": 2, "n_head": 2} if kind == "gpt2" else sizes), **options},
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        initializer_range=0.2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_dataset(rows: int = 12, conversational: bool = False) -> Any:
    """Prompts of different lengths, with a column `target` and a nested one."""
    from datasets import Dataset  # noqa: PLC0415

    texts = [f"count {'x' * (index % 4)} {index}" for index in range(rows)]
    prompts = [[{"role": "user", "content": text}] for text in texts] if conversational else texts
    return Dataset.from_dict(
        {
            "prompt": prompts,
            "target": [str(index) for index in range(rows)],
            "tags": [[[i], [i, 0]] for i in range(rows)],
        }
    )
