"""The scorer `classifier`: TRL's numbers, whatever the batch; what is said of a model that cannot be used.

The models are tiny and made here: a Qwen2 with a classification head and random weights.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from builders import make_dataset, make_group, make_tokenizer, save_tiny_model
from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import Place, Scorer
from reward_server.scorers.classifier import batches
from reward_server.scorers.registry import build, parse_options
from reward_server.types import Status

COMPLETIONS = ["yes", "no, and here is a rather long explanation of why", "", "maybe", "é" * 30]


def save_reward_model(folder: Path, labels: int = 1, seed: int = 0, pad_token: str | None = "<pad>") -> str:
    """A sequence classifier and its tokenizer, in a folder that from_pretrained loads."""
    import torch  # noqa: PLC0415
    from transformers import Qwen2Config, Qwen2ForSequenceClassification  # noqa: PLC0415

    tokenizer = make_tokenizer()
    tokenizer.pad_token = pad_token
    torch.manual_seed(seed)
    config = Qwen2Config(
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
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_reward_model(tmp_path_factory.mktemp("reward-model"))


def make(model: str, base_dir: Path | None = None, **options: Any) -> Scorer:
    mapping = {"type": "classifier", "name": "rm", "model": model, "device": "cpu", **options}
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


def load_error(scorer: Scorer) -> str:
    with pytest.raises(ScorerLoadError) as raised:
        scorer.load()
    return str(raised.value)


# ----------------------------------------------------------------------------------------------------------- the scores


@pytest.mark.slow
@pytest.mark.parametrize("pad_token", ["<pad>", None])
@pytest.mark.parametrize("conversational", [False, True])
def test_scores_are_those_of_trls_reward_model_in_process(
    tmp_path: Path, tiny_model: str, conversational: bool, pad_token: str | None
) -> None:
    from trl import GRPOConfig, GRPOTrainer  # noqa: PLC0415

    model = save_reward_model(tmp_path / "rm", pad_token=pad_token)
    args = GRPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    trainer = GRPOTrainer(tiny_model, reward_funcs=model, args=args, train_dataset=make_dataset())
    prompt: Any = [{"role": "user", "content": "Is it?"}] if conversational else "Is it? "
    completions: Any = as_messages(COMPLETIONS) if conversational else COMPLETIONS
    count = len(completions)
    theirs = trainer._calculate_rewards([{"prompt": prompt}] * count, [prompt] * count, completions, [[1]] * count)
    # Equal to float32's last bits: padding to another length changes the order of sums.
    assert values(loaded(model), completions, prompt) == pytest.approx(theirs[:, 0].tolist(), rel=1e-5, abs=1e-6)


def test_a_score_does_not_depend_on_what_else_is_in_the_batch(reward_model: str) -> None:
    together = values(loaded(reward_model), COMPLETIONS)
    in_small_batches = values(loaded(reward_model, max_batch_tokens=64), COMPLETIONS)
    one_by_one = [value for text in COMPLETIONS for value in values(loaded(reward_model), [text])]
    assert len({round(value or 0, 3) for value in together}) == len(COMPLETIONS)
    assert in_small_batches == pytest.approx(together, rel=1e-5, abs=1e-6)
    assert one_by_one == pytest.approx(together, rel=1e-5, abs=1e-6)


def test_batches_are_length_sorted_and_keep_to_the_limit_with_padding() -> None:
    # padded: 9 alone (18 would pass 12), then 4+4 -> 8 and a third 4 -> 12, then the rest
    assert list(batches([4, 9, 4, 2, 4], max_batch_tokens=12)) == [[1], [0, 2, 4], [3]]
    assert list(batches([50], max_batch_tokens=12)) == [[0]]
    assert list(batches([], max_batch_tokens=12)) == []


def test_a_model_of_several_labels_scores_by_the_one_named(tmp_path: Path) -> None:
    model = save_reward_model(tmp_path, labels=2)
    by_index = values(loaded(model, label=1), COMPLETIONS)
    assert by_index == values(loaded(model, label="LABEL_1"), COMPLETIONS)
    assert by_index != values(loaded(model, label=0), COMPLETIONS)


def test_a_text_beyond_max_length_fails_alone_and_says_so(reward_model: str) -> None:
    group = make_group(["short", "long" * 100], "p")
    short, long = loaded(reward_model).score(group).scores  # type: ignore[union-attr]
    assert short.status is Status.OK
    assert long.status is Status.FAILED
    assert long.message.startswith("401 tokens of prompt and completion are beyond max_length (256)")


def test_truncation_cuts_the_end_that_it_names(reward_model: str) -> None:
    whole = loaded(reward_model)
    left = loaded(reward_model, max_length=4, truncate="left")
    right = loaded(reward_model, max_length=4, truncate="right")
    assert values(left, ["cdefg"], "ab") == pytest.approx(values(whole, ["defg"], ""))
    assert values(right, ["cdefg"], "ab") == pytest.approx(values(whole, ["cd"], "ab"))


def test_bfloat16_is_an_option_and_near(reward_model: str) -> None:
    exact = values(loaded(reward_model), ["yes"])
    assert values(loaded(reward_model, dtype="bfloat16"), ["yes"]) == pytest.approx(exact, rel=0.1, abs=0.1)


# ---------------------------------------------------------------------------------------------------------- the version


def test_the_version_changes_with_the_weights_and_not_with_the_folder(tmp_path: Path, reward_model: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    same = [loaded(save_reward_model(tmp_path / name / "rm")).version for name in ("a", "b")]
    assert same[0] == same[1]
    assert loaded(save_reward_model(tmp_path / "a" / "rm", seed=1)).version != same[0]
    assert loaded(reward_model, max_length=8).version != loaded(reward_model).version


def test_it_is_found_beside_the_configuration_and_runs_one_group_at_a_time_in_a_thread(tmp_path: Path) -> None:
    save_reward_model(tmp_path / "rm")
    scorer = make("rm", base_dir=tmp_path)
    scorer.load()
    assert scorer.place is Place.THREAD
    assert scorer.concurrency == 1
    assert scorer.deterministic
    assert scorer.version.startswith("rm@")


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("model", ["./no/such/folder", "/no/such/folder", "no/such/folder", "nobody/no-such-model"])
def test_a_model_that_does_not_exist_is_named_quickly_in_a_line(model: str) -> None:
    started = time.monotonic()
    message = load_error(make(model))
    assert repr(model) in message
    assert len(message.splitlines()) == 1
    assert time.monotonic() - started < 20


def test_a_causal_lm_is_refused_since_its_head_would_be_noise(tmp_path: Path) -> None:
    message = load_error(make(str(save_tiny_model(tmp_path))))
    assert "is no reward model: its checkpoint has no weights for score.weight" in message


def test_several_labels_without_a_choice_are_listed(tmp_path: Path) -> None:
    model = save_reward_model(tmp_path, labels=2)
    assert "has 2 labels; set label to one of LABEL_0, LABEL_1, or to an index" in load_error(make(model))
    assert "label 'LABEL_l', did you mean 'LABEL_1'?" in load_error(make(model, label="LABEL_l"))


def test_a_device_that_is_not_there_is_named(reward_model: str) -> None:
    assert "device 'cuda:99': torch sees" in load_error(make(reward_model, device="cuda:99"))


def test_text_and_messages_in_one_completion_is_an_error(reward_model: str) -> None:
    with pytest.raises(ValueError, match="both be text or both be messages"):
        values(loaded(reward_model), as_messages(["a"]), "text")
