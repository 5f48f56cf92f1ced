"""The code of a tiny checkpoint: a reward model that answers in the shapes of well-known ones.

logits      an output with .logits [rows, labels], as most have it
tensor      a bare tensor [rows], as Eurus-RM
score       .score [rows] beside .rewards [rows, 3] and .logits [rows, 3], as ArmoRM
rewards     a mapping with "rewards" [rows]
tuple       what cannot be read
steps       .logits [rows, tokens, 2], as Qwen2.5-Math-PRM
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class TinyRMConfig(PretrainedConfig):
    model_type = "tiny_rm"

    def __init__(self, vocab_size: int = 260, hidden_size: int = 8, answers: str = "logits", **kwargs: Any):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.answers = answers
        super().__init__(**kwargs)


@dataclass
class TinyRMOutput(ModelOutput):
    rewards: torch.Tensor | None = None
    score: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class TinyRM(PreTrainedModel):
    config_class = TinyRMConfig

    def __init__(self, config: TinyRMConfig):
        super().__init__(config)
        self.embedding = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.heads = torch.nn.Linear(config.hidden_size, 3)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        for parameter in module.parameters(recurse=False):
            torch.nn.init.normal_(parameter)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        hidden_NTD = self.embedding(input_ids) * attention_mask[..., None]
        counts_NT = attention_mask.cumsum(1).clamp(min=1)
        heads_NTH = self.heads(hidden_NTD.cumsum(1) / counts_NT[..., None])
        last_N = attention_mask.sum(1) - 1
        heads_NH = heads_NTH[torch.arange(len(last_N)), last_N]
        match self.config.answers:
            case "logits":
                return TinyRMOutput(logits=heads_NH[:, :1])
            case "tensor":
                return heads_NH[:, 0]
            case "score":
                return TinyRMOutput(rewards=heads_NH, score=heads_NH.sum(-1), logits=heads_NH)
            case "rewards":
                return {"rewards": heads_NH[:, 0], "note": "none"}
            case "tuple":
                return (heads_NH,)
            case _:
                return TinyRMOutput(logits=heads_NTH[..., :2])
