"""Tiny random models of many architectures, with TRL's fused head, and what the trial at start-up says of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from grpo_plugin.batching.forward import find_layout
from grpo_plugin.batching.plan import Layout
from grpo_plugin.batching.ranks import Ranks

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 259,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_MAMBA = {
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}

# Rows of these stay apart in packed attention.
PACKED: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {"head_dim": 16, **_ALTERNATING},
    "qwen3_moe": {"head_dim": 16, **_EXPERTS},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo3": _ALTERNATING,
    "phi3": {},
    "deepseek_v3": {
        **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16},
        **{"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
        **_EXPERTS,
    },
    "mistral": {"sliding_window": 9},
    "qwen2": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}

# Layers of these carry state along the sequence, past the end of a row.
CARRY_STATE: dict[str, dict[str, Any]] = {
    "jamba": {
        **{"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
        **{"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"head_dim": 16, "attention_window_size": 32, "lru_width": 32, "num_hidden_layers": 3},
    "bamba": {"attn_layer_indices": [1], **_MAMBA},
    "granitemoehybrid": {
        **{"layer_types": ["mamba", "attention"], "num_local_experts": 2, "num_experts_per_tok": 1},
        **{"shared_intermediate_size": 32, **_MAMBA},
    },
    "falcon_h1": {"head_dim": 16, "mamba_d_ssm": 64, **_MAMBA},
    "qwen3_next": {
        **{"head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2},
        **{"linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
        **{"shared_expert_intermediate_size": 32, **_EXPERTS},
    },
}

# The window is in the mask and not among the arguments of attention.
WINDOW_IN_MASK = {
    **{"use_sliding_window": True, "sliding_window": 48, "layer_types": ["sliding_attention"] * 2},
    **{"shared_expert_intermediate_size": 32, **_EXPERTS},
}


def make_model(kind: str, seed: int = 0, **options: Any) -> Any:
    """A causal LM with random weights, in training mode, whose forward takes TRL's `fused_lm_head`."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**_SIZES, **options})
    model = AutoModelForCausalLM.from_config(config)
    add_fused_lm_head(model)
    return model.train()


def trls_form(model: Any, autocast: Any = contextlib.nullcontext) -> Callable[..., torch.Tensor]:
    """Log-probabilities of completions, shape (N, width), as TRL 1.16 computes them (grpo_trainer.py, line 1419)."""

    def padded(ids: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :-width] = -100
        with autocast():
            log_probs = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs
        return log_probs[:, -width:]

    return padded


def layout_of(model: Any, precision: str = "float32", ranks: Ranks | None = None, **options: Any) -> Layout | None:
    """What the trial finds; `precision` is float32, bfloat16 (weights) or autocast (bfloat16 over float32 weights)."""
    if precision == "bfloat16":
        model = model.bfloat16()
    autocast = (lambda: torch.autocast("cpu", torch.bfloat16)) if precision == "autocast" else contextlib.nullcontext
    return find_layout(
        model,
        options.pop("config", model.config),
        trls_form(model, autocast),
        autocast,
        ranks or Ranks(0, 1, lambda tensor: tensor),
        half=precision != "float32",
        **{"packs": True, "shares": True, **options},
    )
