"""The scorer `classifier`: TRL's numbers, whatever the batch; what is said of a model that cannot be used.

The models are tiny and made here: a Qwen2 with a classification head and random weights.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from pathlib import Path
from typing import Any

import pytest

from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError, ScorerLoadError
from reward_server.scorers.base import ExecutorKind, Scorer
from reward_server.scorers.batched import batches
from reward_server.scorers.classifier import aggregated
from reward_server.scorers.registry import build, parse_options
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Status
from tests.support.builders import make_dataset, make_group, make_tokenizer, save_tiny_model

COMPLETIONS = ["yes", "no, and here is a rather long explanation of why", "", "maybe", "é" * 30]


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


def sigmoid(logit: float | None) -> float:
    assert logit is not None
    return 1 / (1 + math.exp(-logit))


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


# Padding to another length, and rows more or less, change the order of sums: the last bits of the precision differ.
# The scores lie between -2 and 3.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 0.005), ("bfloat16", 0.03)])
def test_a_score_does_not_depend_on_what_else_is_in_the_batch(reward_model: str, dtype: str, tolerance: float) -> None:
    scorer, small = (loaded(reward_model, dtype=dtype, max_batch_tokens=tokens) for tokens in (16384, 64))
    together = values(scorer, COMPLETIONS)
    one_by_one = [value for text in COMPLETIONS for value in values(scorer, [text])]
    assert len({round(value or 0, 2) for value in together}) == len(COMPLETIONS)
    assert values(small, COMPLETIONS) == pytest.approx(together, abs=tolerance)
    assert one_by_one == pytest.approx(together, abs=tolerance)


async def test_groups_of_many_callers_on_two_devices_get_the_scores_that_each_gets_alone(reward_model: str) -> None:
    options = {"type": "classifier", "name": "rm", "model": reward_model, "max_batch_tokens": 400}
    scorers = ScorerSet(config_from_mapping({"scorers": [{**options, "devices": ["cpu", "cpu"]}]}))
    await scorers.load()
    rng = random.Random(0)
    texts = [["".join(rng.choices("abcdefgh ", k=rng.randint(1, 200))) for _ in range(4)] for _ in range(24)]
    answers = await asyncio.gather(*(scorers.score(make_group(text, "p", group_id=str(text))) for text in texts))
    alone = loaded(reward_model)
    for text, answer in zip(texts, answers, strict=True):
        given = [score.value for score in answer.scorers[0].scores]
        assert given == pytest.approx(values(alone, text, "p"), abs=1e-5)
    stats = scorers.batchers["rm"].stats
    assert stats.rows == 96
    assert stats.batches < 60
    await scorers.close()


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_scores_and_compiles_nothing_while_it_serves(reward_model: str) -> None:
    import torch  # noqa: PLC0415

    compiled = loaded(reward_model, compile="eager")  # dynamo without a C++ compiler's minutes
    frames = dict(torch._dynamo.utils.counters["frames"])
    assert frames["ok"] > 0
    texts = ["a" * length for length in (1, 2, 3, 17, 200)]
    expected = values(loaded(reward_model), texts, "")
    assert values(compiled, texts, "") == pytest.approx(expected, abs=1e-5)
    assert [values(compiled, [text], "")[0] for text in texts] == pytest.approx(expected, abs=1e-5)
    assert dict(torch._dynamo.utils.counters["frames"]) == frames


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


def test_truncation_is_reported_as_the_share_of_a_group(reward_model: str) -> None:
    group = make_group(["cdefg", "c", "cd", "cde"], "ab")
    assert loaded(reward_model, max_length=4, truncate="left").score(group).metrics == {"rm/truncated": 0.5}  # type: ignore[union-attr]
    assert loaded(reward_model, truncate="left").score(group).metrics == {"rm/truncated": 0.0}  # type: ignore[union-attr]
    assert loaded(reward_model).score(group).metrics == {}  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_an_option_and_near(reward_model: str, dtype: str) -> None:
    exact = values(loaded(reward_model), COMPLETIONS)
    assert values(loaded(reward_model, dtype=dtype), COMPLETIONS) == pytest.approx(exact, abs=0.05)


def test_a_probability_is_an_option(tmp_path: Path, reward_model: str) -> None:
    logits = values(loaded(reward_model), ["yes"])
    assert values(loaded(reward_model, output="probability"), ["yes"]) == pytest.approx([sigmoid(logits[0])])
    two = save_reward_model(tmp_path, labels=2)
    shares = [values(loaded(two, label=label, output="probability"), ["yes"])[0] or 0 for label in (0, 1)]
    assert sum(shares) == pytest.approx(1)


def test_nothing_at_all_is_no_text_to_score(reward_model: str) -> None:
    empty, there = loaded(reward_model).score(make_group(["", "a"], "")).scores  # type: ignore[union-attr]
    assert (empty.status, empty.message) == (
        Status.FAILED,
        "prompt and completion are empty: there is nothing to score",
    )
    assert there.status is Status.OK


# ------------------------------------------------------------------------------------------------------ process rewards


@pytest.fixture(scope="module")
def process_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_reward_model(tmp_path_factory.mktemp("process-model"), labels=2, kind="Token")


def probabilities_at(model: str, text: str, ends: list[int]) -> list[float]:
    """Of label 1, from transformers itself. The tokens are bytes."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForTokenClassification, AutoTokenizer  # noqa: PLC0415

    ids = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = AutoModelForTokenClassification.from_pretrained(model)(input_ids=ids).logits[0]
    return logits.softmax(-1)[ends, 1].tolist()


def steps_of(model: str, completions: Any, prompt: Any = "Q:", **options: Any) -> Any:
    """The result of a scorer whose steps end in a line break; `options` are those of `steps`."""
    scorer = loaded(model, label=1, steps={"separator": "\n", **options})
    return scorer.score(make_group(completions, prompt))


def test_a_process_model_scores_each_step_at_its_end(process_model: str) -> None:
    result = steps_of(process_model, ["one\ntwo\n\nthree", "a"])
    #                                             Q:one\n  two\n  three\n
    expected = probabilities_at(process_model, "Q:one\ntwo\nthree\n", [5, 9, 15])
    assert result.extra["rm/steps"][0] == pytest.approx(expected, abs=1e-5)
    assert result.scores[0].value == pytest.approx(min(expected), abs=1e-5)
    assert result.extra["rm/steps"][1] == pytest.approx(probabilities_at(process_model, "Q:a\n", [3]), abs=1e-5)


def test_steps_are_aggregated_by_min_last_or_mean(process_model: str) -> None:
    completion = "one\ntwo\nthree"
    steps = steps_of(process_model, [completion]).extra["rm/steps"][0]
    assert len(set(steps)) == 3
    expected = {"min": min(steps), "last": steps[-1], "mean": sum(steps) / 3}
    for aggregate, value in expected.items():
        assert steps_of(process_model, [completion], aggregate=aggregate).scores[0].value == pytest.approx(value)


def test_the_step_token_may_be_another_and_a_completion_cannot_forge_it(process_model: str) -> None:
    result = steps_of(process_model, ["one\nt*o"], token="*")
    expected = probabilities_at(process_model, "Q:one*t*o*", [5, 9])
    assert result.extra["rm/steps"][0] == pytest.approx(expected, abs=1e-5)


def test_messages_are_scored_by_step_after_the_prompt_as_the_template_has_it(process_model: str) -> None:
    prompt = [{"role": "user", "content": "Is it?"}]
    result = steps_of(process_model, as_messages(["one\ntwo"]), prompt)
    start = "<|user|>Is it?\n<|assistant|>"
    expected = probabilities_at(process_model, f"{start}one\ntwo\n", [len(start) + 3, len(start) + 7])
    assert result.extra["rm/steps"][0] == pytest.approx(expected, abs=1e-5)


def test_steps_that_are_cut_off_do_not_count_and_a_text_without_any_left_fails(process_model: str) -> None:
    options = {"label": 1, "steps": {"separator": "\n"}, "max_length": 7, "truncate": "right"}
    cut = loaded(process_model, **options).score(make_group(["one\ntwo", "oneandtwo"], "Q:"))
    assert cut.extra["rm/steps"][0] == pytest.approx(probabilities_at(process_model, "Q:one\n", [5]), abs=1e-5)  # type: ignore[union-attr]
    assert cut.scores[1].status is Status.FAILED  # type: ignore[union-attr]
    assert cut.scores[1].message == "no step ends within max_length (7) of 12 tokens; raise it"  # type: ignore[union-attr]
    assert cut.metrics == {"rm/truncated": 0.5}  # type: ignore[union-attr]


def test_a_step_that_is_no_number_makes_no_score() -> None:
    assert math.isnan(aggregated([1.0, math.nan], "min"))
    assert math.isnan(aggregated([math.nan, 1.0], "last"))


def test_a_classifier_of_texts_is_no_process_model(reward_model: str) -> None:
    message = load_error(make(str(save_tiny_model(Path(reward_model).parent / "lm")), steps={}))
    assert "is no process reward model" in message
    assert "trained for token classification" in message


# ---------------------------------------------------------------------------------------------------------- the version


def test_the_version_changes_with_the_weights_and_not_with_the_folder(tmp_path: Path, reward_model: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    same = [loaded(save_reward_model(tmp_path / name / "rm")).version for name in ("a", "b")]
    assert same[0] == same[1]
    assert loaded(save_reward_model(tmp_path / "a" / "rm", seed=1)).version != same[0]
    assert loaded(reward_model, max_length=8).version != loaded(reward_model).version


def test_it_is_found_beside_the_configuration_and_runs_in_batches(tmp_path: Path) -> None:
    save_reward_model(tmp_path / "rm")
    scorer = make("rm", base_dir=tmp_path)
    scorer.load()
    assert scorer.place is ExecutorKind.BATCH
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


def test_what_is_no_device_is_refused_with_what_is_one(reward_model: str) -> None:
    with pytest.raises(ConfigError, match=r"devices: 'gpu' is no device; give auto, cpu, cuda, cuda:0"):
        make(reward_model, devices=["cpu", "gpu"])


def test_a_back_end_that_torch_does_not_have_is_named(reward_model: str) -> None:
    message = load_error(make(reward_model, compile="nonsense"))
    assert "cannot be compiled: Invalid backend: 'nonsense'" in message
    assert "set compile: false" in message


def test_text_and_messages_in_one_completion_is_an_error(reward_model: str) -> None:
    with pytest.raises(ValueError, match="both be text or both be messages"):
        values(loaded(reward_model), as_messages(["a"]), "text")
