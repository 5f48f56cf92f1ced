"""Tiny reward models in folders that from_pretrained loads, and scorers that are made of them."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import Result, Scorer
from reward_server.scorers.registry import build, parse_options
from tests.support.builders import make_group, make_tokenizer

COMPLETIONS = ["yes", "no, and here is a rather long explanation of why", "", "maybe", "é" * 30]
_CODE = Path(__file__).parent / "remote_code" / "modeling_tiny_rm.py"


def save_reward_model(
    folder: Path, labels: int = 1, seed: int = 0, pad_token: str | None = "<pad>", kind: str = "Sequence"
) -> str:
    """A classifier of sequences (or tokens) and its tokenizer, in a folder that from_pretrained loads."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    tokenizer = make_tokenizer()
    tokenizer.pad_token = pad_token
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        num_labels=labels,
        pad_token_id=None,
        initializer_range=0.2,
    )
    getattr(transformers, f"Qwen2For{kind}Classification")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_model_with_code(folder: Path, answers: str = "logits", auto_class: str = "AutoModel", seed: int = 0) -> str:
    """A reward model whose code comes with its checkpoint (remote_code/modeling_tiny_rm.py says what it answers)."""
    import torch  # noqa: PLC0415

    spec = importlib.util.spec_from_file_location("modeling_tiny_rm", _CODE)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = code.TinyRMConfig(vocab_size=len(tokenizer), answers=answers)
    code.TinyRM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(_CODE, folder)
    described = json.loads((folder / "config.json").read_text())
    named = {"AutoConfig": "modeling_tiny_rm.TinyRMConfig", auto_class: "modeling_tiny_rm.TinyRM"}
    (folder / "config.json").write_text(json.dumps({**described, "auto_map": named}))
    return str(folder)


def make(model: str, base_dir: Path | None = None, type: str = "classifier", **options: Any) -> Scorer:
    mapping = {"type": type, "name": "rm", "model": model, "device": "cpu", **options}
    return build(parse_options(mapping, base_dir=base_dir))


def loaded(model: str, **options: Any) -> Scorer:
    scorer = make(model, **options)
    scorer.load()
    return scorer


def values(scorer: Scorer, completions: Any, prompt: Any = "Is it? ") -> list[float | None]:
    result = scorer.score(make_group(completions, prompt))
    return [score.value for score in result.scores]  # type: ignore[union-attr]


def as_messages(completions: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in completions]


def sigmoid(logit: float | None) -> float:
    assert logit is not None
    return 1 / (1 + math.exp(-logit))


def load_error(scorer: Scorer) -> str:
    with pytest.raises(ScorerLoadError) as raised:
        scorer.load()
    return str(raised.value)


def scored(scorer: Scorer, completions: Any, prompt: Any = "Is it? ", **columns: Any) -> Result:
    """The result of a group, with columns of the dataset."""
    result = scorer.score(make_group(completions, prompt, columns=columns))
    assert isinstance(result, Result)
    return result
