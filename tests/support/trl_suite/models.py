"""The stand-in models: for every `trl-internal-testing/tiny-…` that TRL's GRPO tests name, a random model of that
class, two layers of eight or sixteen channels, with its tokenizer or processor.

Owns the table from name to recipe. Sizes follow what the tests rely on (2 layers, 4 heads, and for LLaVA a vision tower
whose second layer feeds nothing). Knows nothing of where it is saved; `hub.py` does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn

from . import vocab

SEED = 0


@dataclass(frozen=True)
class Recipe:
    """How to make one repository: `build` is handed the tokenizer and returns the model; `process` wraps the tokenizer
    into a processor, for models that see."""

    vocabulary: vocab.Vocabulary
    build: Callable[[Any], Any]
    process: Callable[[Any], Any] | None = None


def save(recipe: Recipe, folder: Path) -> None:
    """Writes model, tokenizer or processor, and generation config into `folder`, the same on each call."""
    tokenizer = vocab.make_tokenizer(recipe.vocabulary)
    torch.manual_seed(SEED)
    model = recipe.build(tokenizer)
    model.generation_config = tf.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    (recipe.process(tokenizer) if recipe.process else tokenizer).save_pretrained(folder)


# Narrow, but with every part that the real ones have.
SMALL = {
    "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 32,
}  # fmt: skip
SMALL_TEXT = SMALL | {"hidden_size": 16}


def _token_ids(tokenizer: Any) -> dict[str, int | None]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def causal_lm(name: str, **sizes: Any) -> Callable[[Any], Any]:
    """Builds transformers' `<name>ForCausalLM`."""

    def build(tokenizer: Any) -> Any:
        config = getattr(tf, f"{name}Config")(**_token_ids(tokenizer), **(SMALL | sizes))
        return _spread(getattr(tf, f"{name}ForCausalLM")(config))

    return build


def reward_model(name: str) -> Callable[[Any], Any]:
    """Builds transformers' `<name>ForSequenceClassification` with one label."""

    def build(tokenizer: Any) -> Any:
        config = getattr(tf, f"{name}Config")(**_token_ids(tokenizer), **SMALL_TEXT, num_labels=1)
        return _spread(getattr(tf, f"{name}ForSequenceClassification")(config))

    return build


def _spread(model: Any) -> Any:
    """Wider weights than transformers' 0.02: eight channels wide, those leave gradients too small to move bfloat16."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return model


def see(
    name: str, text: Mapping[str, Any], vision: Mapping[str, Any], tokens: Mapping[str, str], **settings: Any
) -> Callable[[Any], Any]:
    """Builds transformers' `<name>ForConditionalGeneration`; `tokens` gives config keys the id of a token by text."""

    def build(tokenizer: Any) -> Any:
        config_class = getattr(tf, f"{name}Config")
        ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in tokens.items()}
        text_config = _token_ids(tokenizer) | SMALL_TEXT | dict(text)
        config = config_class(text_config=text_config, vision_config=dict(vision), **ids, **settings)
        return getattr(tf, f"{name}ForConditionalGeneration")(config)

    return build


def _qwen_vl_processor(name: str) -> Callable[[Any], Any]:
    def process(tokenizer: Any) -> Any:
        return getattr(tf, name)(
            image_processor=tf.Qwen2VLImageProcessor(),
            tokenizer=tokenizer,
            video_processor=tf.Qwen2VLVideoProcessor(),
            chat_template=tokenizer.chat_template,
        )

    return process


def _qwen3_vl_processor(tokenizer: Any) -> Any:
    return tf.Qwen3VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(patch_size=16),
        tokenizer=tokenizer,
        video_processor=tf.Qwen3VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    )


GEMMA3_IMAGE_TOKENS = 16  # the square of (image_size / patch_size / pooling) below: 224 / 14 / 4 = 4


def _gemma3_processor(tokenizer: Any) -> Any:
    return tf.Gemma3Processor(
        image_processor=tf.Gemma3ImageProcessor(size={"height": 224, "width": 224}),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=GEMMA3_IMAGE_TOKENS,
    )


GEMMA4_IMAGE_TOKENS = 70  # the fewest that its image processor supports
GEMMA4_POOLING = 3


def _gemma4_processor(tokenizer: Any) -> Any:
    return tf.Gemma4Processor(
        feature_extractor=tf.Gemma4AudioFeatureExtractor(),
        image_processor=tf.Gemma4ImageProcessor(max_soft_tokens=GEMMA4_IMAGE_TOKENS),
        tokenizer=tokenizer,
        video_processor=tf.Gemma4VideoProcessor(),
        chat_template=tokenizer.chat_template,
        image_seq_length=GEMMA4_IMAGE_TOKENS,
    )


LLAVA_GRID = [[28, 56], [56, 28]]  # pixels: two tiles of the vision tower's 28, beside or above each other


def _llava_next_processor(tokenizer: Any) -> Any:
    return tf.LlavaNextProcessor(
        image_processor=tf.LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=LLAVA_GRID
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=1,
    )


SMALL_VISION = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1_000_000.0}
QWEN_IMAGE_TOKENS = {
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}  # fmt: skip
QWEN3_5_TEXT = {
    "layer_types": ["linear_attention", "full_attention"], "head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "rope_parameters": {
        "rope_type": "default", "mrope_section": [1, 1, 0], "mrope_interleaved": True, "rope_theta": 10_000_000.0,
        "partial_rotary_factor": 0.25,
    },
}  # fmt: skip
QWEN3_5_VISION = {"hidden_size": 16, "depth": 2, "num_heads": 4, "intermediate_size": 32, "out_hidden_size": 16}
SMALL_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
}  # fmt: skip


RECIPES: dict[str, Recipe] = {
    "tiny-Qwen2ForCausalLM-2.5": Recipe(vocab.qwen("qwen2_5"), causal_lm("Qwen2")),
    "tiny-Qwen3ForCausalLM": Recipe(vocab.qwen("qwen3"), causal_lm("Qwen3", head_dim=16)),
    "tiny-Qwen3MoeForCausalLM": Recipe(
        vocab.qwen("qwen3"), causal_lm("Qwen3Moe", num_experts=4, num_experts_per_tok=2, head_dim=16)
    ),
    "tiny-Cohere2ForCausalLM": Recipe(vocab.COHERE2, causal_lm("Cohere2", logit_scale=1.0)),
    "tiny-Glm4MoeForCausalLM": Recipe(
        vocab.GLM4,
        causal_lm(
            "Glm4Moe", moe_intermediate_size=32, head_dim=2, n_routed_experts=4, num_experts_per_tok=2,
            attention_bias=True, use_qk_norm=True,
        ),
    ),
    "tiny-GptOssForCausalLM": Recipe(
        vocab.GPT_OSS, causal_lm("GptOss", num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    ),
    "tiny-NemotronHForCausalLM-nano": Recipe(
        vocab.NEMOTRON,
        causal_lm(
            "NemotronH", hidden_size=16, layers_block_type=["mamba", "attention", "moe"], mamba_num_heads=8,
            mamba_head_dim=4, n_groups=1, ssm_state_size=16, n_routed_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=32, moe_shared_expert_intermediate_size=32, use_mamba_kernels=False,
            num_hidden_layers=3,
        ),
    ),
    "tiny-LlamaForCausalLM-3.2": Recipe(vocab.LLAMA3, causal_lm("Llama")),
    "tiny-MistralForCausalLM-0.2": Recipe(vocab.PLAIN, causal_lm("Mistral")),
    "tiny-Gemma2ForCausalLM": Recipe(vocab.PLAIN, causal_lm("Gemma2", head_dim=8)),
    "tiny-Qwen2ForSequenceClassification-2.5": Recipe(vocab.qwen("qwen2_5"), reward_model("Qwen2")),
    "tiny-Qwen3ForSequenceClassification": Recipe(vocab.qwen("qwen3"), reward_model("Qwen3")),
    "tiny-LlamaForSequenceClassification-3.2": Recipe(vocab.LLAMA3, reward_model("Llama")),
}  # fmt: skip

# These need torchvision, which transformers' video processors are written on.
VISION_RECIPES: dict[str, Recipe] = {
    "tiny-Qwen2VLForConditionalGeneration": Recipe(
        vocab.qwen("qwen2_5_vl"),
        see(
            "Qwen2VL", {"rope_parameters": MROPE}, {"embed_dim": 16, "hidden_size": 16, "num_heads": 4, "depth": 2},
            QWEN_IMAGE_TOKENS,
        ),
        _qwen_vl_processor("Qwen2VLProcessor"),
    ),
    "tiny-Qwen2_5_VLForConditionalGeneration": Recipe(
        vocab.qwen("qwen2_5_vl"),
        see(
            "Qwen2_5_VL", {"rope_parameters": MROPE},
            {
                "hidden_size": 16, "num_heads": 4, "depth": 2, "fullatt_block_indexes": [1], "out_hidden_size": 16,
                "intermediate_size": 32,
            },
            QWEN_IMAGE_TOKENS,
        ),
        _qwen_vl_processor("Qwen2_5_VLProcessor"),
    ),
    "tiny-Qwen3_5ForConditionalGeneration-NoThink": Recipe(
        vocab.qwen3_5("qwen3_5_nothink"), see("Qwen3_5", QWEN3_5_TEXT, QWEN3_5_VISION, QWEN_IMAGE_TOKENS),
        _qwen3_vl_processor,
    ),
    "tiny-Qwen3_5MoeForConditionalGeneration-3.6": Recipe(
        vocab.qwen3_5("qwen3_6"),
        see("Qwen3_5Moe", QWEN3_5_TEXT | SMALL_EXPERTS, QWEN3_5_VISION, QWEN_IMAGE_TOKENS),
        _qwen3_vl_processor,
    ),
    "tiny-Gemma3ForConditionalGeneration": Recipe(
        vocab.GEMMA3,
        see(
            "Gemma3", {"head_dim": 8}, SMALL_VISION | {"image_size": 224, "patch_size": 14, "vision_use_head": False},
            {
                "image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>",
                "eoi_token_index": "<end_of_image>",
            },
            mm_tokens_per_image=GEMMA3_IMAGE_TOKENS,
        ),
        _gemma3_processor,
    ),
    "tiny-Gemma4ForConditionalGeneration": Recipe(
        vocab.GEMMA4,
        see(
            "Gemma4",
            {
                "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0, "head_dim": 8,
                "global_head_dim": 8, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 4096,
            },
            SMALL_VISION | {
                "num_key_value_heads": 4, "head_dim": 4, "default_output_length": GEMMA4_IMAGE_TOKENS,
                "position_embedding_size": GEMMA4_IMAGE_TOKENS * GEMMA4_POOLING**2,
            },
            {
                "image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>",
                "video_token_id": "<|video|>", "audio_token_id": "<|audio|>",
            },
        ),
        _gemma4_processor,
    ),
    "tiny-LlavaNextForConditionalGeneration": Recipe(
        vocab.LLAVA_NEXT,
        see(
            "LlavaNext", {"model_type": "mistral"},
            SMALL_VISION | {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14},
            {"image_token_index": "<image>"}, image_grid_pinpoints=LLAVA_GRID,
        ),
        _llava_next_processor,
    ),
}  # fmt: skip
