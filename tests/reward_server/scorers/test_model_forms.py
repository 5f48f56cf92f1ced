"""Packed rows in the models of scorers: which models are packed, and the scores of each row alone whatever the form."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from packed_attention.attention import observed_calls, register
from packed_attention.varlen import VarlenKernel
from reward_server.scorers import models as models_module
from reward_server.scorers.model_batches import HostBatch, few_lengths
from reward_server.scorers.model_trial import Trial
from reward_server.scorers.models import Models
from reward_server.scorers.registry import build, parse_options
from reward_server.scorers.text_model import TextModelScorer
from tests.support.builders import make_group, make_tokenizer
from tests.support.models import CARRY_STATE, WINDOW_IN_MASK
from tests.support.varlen import torch_2_12

_SIZES = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"num_key_value_heads": 2, "max_position_embeddings": 256, "num_labels": 2, "pad_token_id": 0},
    **{"vocab_size": 270, "initializer_range": 0.3},
}
# RoBERTa counts positions from behind the padding token's id.
_ENCODER = {"type_vocab_size": 2, "pad_token_id": make_tokenizer().pad_token_id, "max_position_embeddings": 1024}

# Kind of model, what it classifies, and its options. The last token is pooled, or the first, or none.
PACKED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2": ("qwen2", "Sequence", {}),
    "llama": ("llama", "Sequence", {"num_key_value_heads": 1}),
    "learned positions": ("gpt2", "Sequence", {"n_inner": 64}),
    "window": ("mistral", "Sequence", {"sliding_window": 9}),
    "steps": ("qwen2", "Token", {}),
    "encoder, first token through a pooler": ("bert", "Sequence", _ENCODER),
    "encoder, positions behind the padding token's": ("roberta", "Sequence", _ENCODER),
    "encoder of tokens": ("distilbert", "Token", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}),
}
PADDED: dict[str, tuple[tuple[str, str, dict[str, Any]], str]] = {
    "state": (("jamba", "Sequence", CARRY_STATE["jamba"]), r"packed rows|attention"),
    "window in the mask alone": (("qwen2_moe", "Sequence", WINDOW_IN_MASK), "which only its mask says"),
    "attention of its own": (("deberta-v2", "Sequence", {}), "attention 'eager' takes no packed rows"),
    "windows to both sides": (
        ("modernbert", "Sequence", {"global_attn_every_n_layers": 2, "local_attention": 8}),
        "mask says|looks in both directions",
    ),
}


def make_classifier(kind: str, task: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**_SIZES, **options})
    return getattr(transformers, f"AutoModelFor{task}Classification").from_config(config)


@pytest.fixture
def scorer_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TextModelScorer[Any]]:
    """A scorer of a model that is in memory: loaded as from a folder, without the files."""

    def made(model: Any, dtype: torch.dtype = torch.float32, **options: Any) -> TextModelScorer[Any]:
        tokenizer = make_tokenizer()
        model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        monkeypatch.setattr(models_module, "load_model", lambda *_: (model, tokenizer, "tiny"))
        steps = {"steps": {"separator": "\n"}} if "Token" in type(model).__name__ else {}
        kind = {} if "CausalLM" in type(model).__name__ else {"type": "classifier", "label": 1}
        mapping = {"name": "rm", "model": "tiny", "device": "cpu", **kind, **steps, **options}
        scorer = build(parse_options(mapping))
        scorer.load()
        assert isinstance(scorer, TextModelScorer)
        return scorer

    return made


def make_texts(count: int = 12) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("abcdefgh\n", k=rng.randint(1, 90))) for _ in range(count)]


def scores(scorer: TextModelScorer[Any], texts: list[str]) -> torch.Tensor:
    return torch.tensor([score.value for score in scorer.score(make_group(texts, "p:")).scores])  # type: ignore[union-attr]


def one_by_one(scorer: TextModelScorer[Any], texts: list[str]) -> torch.Tensor:
    """Each text alone, by the model as it is without any of ours."""
    scorer.models.choice = type(scorer.models.choice)("padded", "")
    return torch.cat([scores(scorer, [text]) for text in texts])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", PACKED)
def test_packed_rows_have_the_scores_of_each_row_alone(
    kind: str, dtype: torch.dtype, scorer_of: Callable[..., TextModelScorer[Any]]
) -> None:
    scorer = scorer_of(make_classifier(*PACKED[kind]), dtype)
    assert scorer.notes[0] == "rows are packed: no padding is computed"
    assert not scorer.pads
    texts = make_texts()
    with observed_calls() as calls:
        packed = scores(scorer, texts)
    assert {call.queries for call in calls} == {sum(len(ids) for ids in scorer.ids(["p:" + t for t in texts]))} or (
        scorer.options.steps is not None
    ), "one sequence without padding"
    alone = one_by_one(scorer, texts)
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    assert alone.std() > 0.05
    assert (packed - alone).abs().max() < tolerance * max(1.0, float(alone.abs().max()))


@pytest.mark.parametrize("kind", ["qwen2", "encoder, first token through a pooler"])
def test_kernels_of_variable_length_give_the_same_scores(
    kind: str, scorer_of: Callable[..., TextModelScorer[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    kernel = VarlenKernel.of(torch_2_12, devices=("cpu",))
    monkeypatch.setattr(ALL_ATTENTION_FUNCTIONS["sdpa"], "kernel", kernel)
    scorer = scorer_of(make_classifier(*PACKED[kind]))
    texts = make_texts()
    with observed_calls() as calls:
        packed = scores(scorer, texts)
    assert {call.path for call in calls} == {"varlen"}
    assert (packed - one_by_one(scorer, texts)).abs().max() < 1e-5


def test_a_window_that_would_take_minutes_to_try_on_a_cpu_is_not_packed_there(
    scorer_of: Callable[..., TextModelScorer[Any]],
) -> None:
    model = make_classifier("mistral", "Sequence", {"sliding_window": 4096, "max_position_embeddings": 32768})
    assert "since a window of 4096 tokens is too long to be tried on a CPU" in scorer_of(model).notes[0]
    assert not scorer_of(model, max_length=1024).pads, "no row is as long as the window"


@pytest.mark.parametrize("kind", PADDED)
def test_a_model_whose_rows_would_not_stay_apart_is_padded_and_says_why(
    kind: str, scorer_of: Callable[..., TextModelScorer[Any]]
) -> None:
    description, reason = PADDED[kind]
    scorer = scorer_of(make_classifier(*description))
    assert scorer.pads
    assert scorer.notes[0].startswith("rows are padded, since ")
    assert any(part in scorer.notes[0] for part in reason.split("|")), scorer.notes[0]
    texts = make_texts(4)
    padded = scores(scorer, texts)
    assert (padded - one_by_one(scorer, texts)).abs().max() < 1e-4


def test_the_next_token_is_read_behind_the_last_one_of_each_packed_row(
    scorer_of: Callable[..., TextModelScorer[Any]],
) -> None:
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(AutoConfig.for_model("qwen2", **_SIZES))
    options = {"type": "token_probability", "form": "text", "question": "{{ prompt }}{{ completion }}"}
    scorer = scorer_of(model, **options, positive=["y"], negative=["n"])
    assert not scorer.pads
    texts = make_texts()
    packed = scores(scorer, texts)
    alone = one_by_one(scorer, texts)
    assert alone.std() > 0.05
    assert (packed - alone).abs().max() < 1e-5


# -------------------------------------------------------------------------------------------- the trial, by toy models

Numbers = list[torch.Tensor]


def chosen(run: Callable[[str, list[list[int]]], Numbers], half: bool = False, never_packed: str = "x") -> str:
    config = transformers.Qwen2Config(attn_implementation="sdpa", pad_token_id=0, max_position_embeddings=64)
    trial = Trial(run, config, torch.device("cpu"), (), half=half, vocabulary=100, most_tokens=None)
    return str(trial.choice(never_packed))


def row_score(row: list[int]) -> float:
    return sum(token * 0.9**place for place, token in enumerate(row)) / 100


def test_a_model_whose_scores_depend_on_padding_gets_each_row_alone() -> None:
    def run(form: str, rows: list[list[int]]) -> Numbers:
        longest = max(map(len, rows))
        return [torch.tensor([row_score(row) / longest]) for row in rows]

    assert chosen(run).startswith("each row goes through the model alone, since padded rows give other scores")
    assert chosen(run, half=True).startswith("each row goes through the model alone")


def test_a_model_that_raises_for_several_rows_gets_each_row_alone() -> None:
    def run(form: str, rows: list[list[int]]) -> Numbers:
        if len(rows) > 1:
            raise RuntimeError("one at a time, please")
        return [torch.tensor([row_score(rows[0])])]

    expected = "each row goes through the model alone, since padded rows raise RuntimeError: one at a time, please"
    assert chosen(run) == expected


@pytest.mark.parametrize("half", [False, True])
def test_rounding_alone_does_not_keep_rows_from_being_padded(half: bool) -> None:
    rng = random.Random(0)

    def run(form: str, rows: list[list[int]]) -> Numbers:
        noise = 0.01 if half else 1e-6
        return [torch.tensor([row_score(row) * (1 + rng.uniform(-noise, noise))]) for row in rows]

    assert chosen(run, half, "nobody asked") == "rows are padded, since nobody asked"


def test_a_leak_that_is_smaller_than_rounding_is_found(
    monkeypatch: pytest.MonkeyPatch, scorer_of: Callable[..., TextModelScorer[Any]]
) -> None:
    numbers = Models._numbers

    def leaking(self: Models, form: Any, rows: list[list[int]]) -> list[Any]:
        values = numbers(self, form, rows)
        return [value + (1e-3 * sum(rows[0]) / 5000 if form == "packed" else 0) for value in values]

    monkeypatch.setattr(Models, "_numbers", leaking)
    scorer = scorer_of(make_classifier("qwen2", "Sequence", {}), torch.bfloat16)
    assert "packed rows do not stay apart: other rows move a score by up to " in scorer.notes[0]


# ---------------------------------------------------------------------------------------------------------- the tensors


def test_a_batch_is_sent_in_one_copy_and_unpacked_to_where_it_came_from() -> None:
    host = HostBatch.of([[5, 6, 7], [8], [9, 4]], [(2,), (0,), ()], 3, 0, packed=True, few_shapes=False, pinned=False)
    batch = host.to(torch.device("cpu"), first_position=2)
    assert batch.ids_NL.tolist() == [[5, 6, 7], [8, 0, 0], [9, 4, 0]]
    assert batch.mask_NL.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.wanted_K.tolist() == [2, 3]
    assert batch.packed is not None
    assert batch.packed.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4]]
    assert batch.packed.inputs["position_ids"].tolist() == [[2, 3, 4, 2, 2, 3]]
    assert batch.packed.inputs["segments"].lengths == [3, 1, 2]
    hidden = torch.arange(1.0, 7).view(1, 6, 1)
    assert batch.packed.unpacked(hidden)[..., 0].tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]


def test_with_few_shapes_a_packed_sequence_ends_in_a_segment_that_no_row_sees() -> None:
    ids = [[7] * 301, [8] * 300]
    host = HostBatch.of(ids, [], 301, 0, packed=True, few_shapes=True, pinned=False)
    batch = host.to(torch.device("cpu"))
    assert batch.packed is not None
    assert batch.packed.inputs["segments"].lengths == [301, 300, 7]
    assert batch.packed.inputs["input_ids"].shape == (1, 608)
    assert batch.packed.unpacked(torch.ones(1, 608, 4)).sum() == 601 * 4


def test_padded_lengths_are_few_and_little_longer() -> None:
    assert [few_lengths(tokens) for tokens in (1, 8, 9, 127, 200, 513, 1000)] == [8, 8, 16, 128, 200, 544, 1024]
    assert len({few_lengths(tokens) for tokens in range(128, 4097)}) == 5 * 16 + 1
    assert all(tokens <= few_lengths(tokens) <= tokens * 17 / 16 + 1 for tokens in range(128, 4097))
