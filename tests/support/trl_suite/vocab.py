"""Tokenizers for the stand-in models: byte-level BPE, trained here in memory, on ids where TRL's tests expect them.

Owns which id means what. TRL's tests feed hand-written ids of the Qwen vocabularies to the trainer and expect the text
of those ids (a tool call, an end of turn), so those pieces sit on those ids. Learned tokens and made-up words fill
every other id: a random model samples from all of them, and each has to decode to something. Chat templates are read
from the installed TRL, which recognises a model's family by them. Knows nothing of models or of where files end up.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
LEARNED_TOKENS = 1500  # so that a prompt with tools is some hundred tokens long, as with the real vocabularies

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Vocabulary:
    """What one family's tokenizer looks like from outside. `specials` and `pieces` are text by id; `named` are the
    tokens that a processor asks for by attribute (`image_token`)."""

    size: int
    specials: Mapping[int, str]
    eos: str
    pad: str
    bos: str | None = None
    template: str = ""  # file stem under TRL's chat_templates; "" for plain ChatML
    pieces: Mapping[int, str] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)


# The ids that TRL's tests spell out for the Qwen2.5 and Qwen3 vocabulary, with their text.
QWEN_PIECES = {
    293: " b", 314: " {", 330: ' "', 397: ">\n", 411: "out", 450: "dec", 497: '",', 522: "</", 606: "name", 788: '":',
    894: " any", 927: "sh", 944: "'t", 1318: "text", 1414: " know", 1513: " don", 2765: " won", 4913: '{"',
    5212: ' {"', 5392: " tool", 6023: "hi", 6659: "call", 7692: "async", 9520: "step", 11248: "}}\n", 13477: "rement",
    14172: "tool", 16252: " increment", 16370: "arguments", 17453: "Done", 22785: "ly_tool", 35744: "increment",
    64648: "multip", 93054: "_multip", 95642: '"}}\n',
}  # fmt: skip
QWEN_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>",
    "</think>",
)  # fmt: skip
# The same for Qwen3.5, from the one test that spells its ids out.
QWEN3_5_PIECES = {
    510: "</", 866: " any", 914: "'t", 1366: " know", 1459: " don", 1628: "function", 5224: " tool", 13744: "=screens",
    16936: "Done", 22076: "_tool", 30091: "hot",
}  # fmt: skip


def _specials(first_id: int, *tokens: str) -> dict[int, str]:
    return dict(enumerate(tokens, start=first_id))


def qwen(template: str) -> Vocabulary:
    return Vocabulary(
        size=151_936, specials=_specials(151_643, *QWEN_SPECIALS), eos="<|im_end|>", pad="<|endoftext|>",
        template=template, pieces=QWEN_PIECES,
    )  # fmt: skip


def qwen3_5(template: str) -> Vocabulary:
    return Vocabulary(
        size=248_320, specials=_specials(248_044, *QWEN_SPECIALS), eos="<|im_end|>", pad="<|endoftext|>",
        template=template, pieces=QWEN3_5_PIECES,
    )  # fmt: skip


# The families below are never addressed by id in the tests, so that a small vocabulary does.
COHERE2 = Vocabulary(
    size=4096, template="cohere2", bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>",
    specials=_specials(
        4000, "<PAD>", "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
    ),
)  # fmt: skip
GLM4 = Vocabulary(
    size=4096, template="glm4moe", eos="<|endoftext|>", pad="<|endoftext|>",
    specials=_specials(
        4000, "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
        "<think>", "</think>", "<tool_call>", "</tool_call>",
    ),
)  # fmt: skip
GPT_OSS = Vocabulary(
    size=4096, template="gptoss", bos="<|startoftext|>", eos="<|return|>", pad="<|endoftext|>",
    specials=_specials(
        4000, "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>",
        "<|constrain|>", "<|call|>",
    ),
)  # fmt: skip
NEMOTRON = Vocabulary(
    size=4096, template="nemotron_3_nano", bos="<s>", eos="<|im_end|>", pad="<|endoftext|>",
    specials=_specials(
        4000, "<s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>",
        "</tool_call>",
    ),
)  # fmt: skip
LLAMA3 = Vocabulary(
    size=4096, template="llama3_2", bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<|eot_id|>",
    specials=_specials(
        4000, "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>",
        "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
    ),
)  # fmt: skip
PLAIN = Vocabulary(
    size=4096, bos="<s>", eos="</s>", pad="<pad>",
    specials=_specials(4000, "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"),
)  # fmt: skip
LLAVA_NEXT = Vocabulary(
    size=4096, template="llava_next", bos="<s>", eos="</s>", pad="<pad>",
    specials=_specials(4000, "<pad>", "<s>", "</s>", "<image>"), named={"image_token": "<image>"},
)  # fmt: skip
GEMMA3 = Vocabulary(
    size=4096, template="gemma3", bos="<bos>", eos="<end_of_turn>", pad="<pad>",
    specials=_specials(
        4000, "<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
        "<image_soft_token>",
    ),
    named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
)  # fmt: skip
GEMMA4 = Vocabulary(
    size=4096, template="gemma4", bos="<bos>", eos="<turn|>", pad="<pad>",
    specials=_specials(
        4000, "<pad>", "<bos>", "<eos>", "<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>", "<|video|>",
        "<|audio>", "<audio|>", "<|audio|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>",
        "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
    ),
    named={
        "boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>", "boa_token": "<|audio>",
        "eoa_token": "<audio|>", "audio_token": "<|audio|>",
    },
)  # fmt: skip


def make_tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """A saved-and-loadable tokenizer with exactly `vocabulary.size` tokens, each of which decodes to some text."""
    learned, merges = _learn()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # GPT-2's order, which gives ids 0-255 in every family
    id_by_token = {token: index for index, token in enumerate(alphabet)}
    id_by_token |= {_to_bytes(text): index for index, text in vocabulary.pieces.items()}
    taken = set(id_by_token.values()) | set(vocabulary.specials)
    free_ids = (index for index in range(256, vocabulary.size) if index not in taken)
    words = (word for word in _made_up_words() if word not in id_by_token)
    for token in learned:
        if token not in id_by_token:
            id_by_token[token] = next(free_ids)
    id_by_token |= {word: index for index, word in zip(free_ids, words, strict=False)}

    # Added tokens take the ids that the model's vocabulary holds for them already.
    id_by_token |= {token: index for index, token in vocabulary.specials.items()}
    core = Tokenizer(models.BPE(vocab=id_by_token, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in vocabulary.specials.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=vocabulary.bos, eos_token=vocabulary.eos, pad_token=vocabulary.pad,
        chat_template=read_template(vocabulary), extra_special_tokens=dict(vocabulary.named),
    )  # fmt: skip


def read_template(vocabulary: Vocabulary) -> str:
    if not vocabulary.template:
        return CHATML
    return (TEMPLATES / f"{vocabulary.template}.jinja").read_text(encoding="utf-8")


def _learn() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges of a small BPE, learned from the installed TRL's chat templates: the text that is tokenized
    most in these tests."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator((path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("*.jinja"))), trainer)
    bpe = json.loads(core.to_str())["model"]
    return sorted(bpe["vocab"], key=bpe["vocab"].get), [(left, right) for left, right in bpe["merges"]]


def _made_up_words() -> Iterator[str]:
    """Endless distinct words of uneven length, each opening with a space: lengths must differ, since many a reward in
    the tests is a length."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    for number in count():
        word, rest = "", number
        while rest or not word:
            rest, digit = divmod(rest, len(syllables))
            word += syllables[digit]
        yield _to_bytes(f" {word}" + "x" * (number % 5))


def _to_bytes(text: str) -> str:
    """Text in the byte-level alphabet, in which BPE vocabularies are written."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)
