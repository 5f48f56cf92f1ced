"""The scorer `classifier`: TRL's numbers, whatever the batch; what is said of a model that cannot be used.

The models are tiny and made here: a Qwen2 with a classification head and random weights.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reward_server.cli.main import main
from reward_server.client import RewardClient
from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError, InvalidGroupError
from reward_server.launch import ServerProcess
from reward_server.scorers.base import ExecutorKind
from reward_server.scorers.batched import batches
from reward_server.serving.scorer_set import ScorerSet
from reward_server.types import Status
from tests.support.builders import CHAT_TEMPLATE, make_dataset, make_group, save_tiny_model
from tests.support.reward_models import (
    COMPLETIONS,
    as_messages,
    load_error,
    loaded,
    make,
    save_reward_model,
    sigmoid,
    values,
)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_reward_model(tmp_path_factory.mktemp("reward-model"))


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
    assert stats.fill == 1, "rows are packed"
    await scorers.close()


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_scores_and_compiles_nothing_while_it_serves(reward_model: str) -> None:
    import torch  # noqa: PLC0415

    compiled = loaded(reward_model, compile="eager")  # dynamo without a C++ compiler's minutes
    frames = dict(torch._dynamo.utils.counters["frames"])
    assert frames["ok"] > 0
    assert compiled.notes[0] == "rows are padded, since compile is set"
    texts = ["a" * length for length in (1, 2, 3, 17, 200)]
    expected = values(loaded(reward_model), texts, "")
    assert values(compiled, texts, "") == pytest.approx(expected, abs=1e-5)
    assert [values(compiled, [text], "")[0] for text in texts] == pytest.approx(expected, abs=1e-5)
    assert dict(torch._dynamo.utils.counters["frames"]) == frames


def test_check_says_in_which_form_rows_go_through_the_model(
    tmp_path: Path, reward_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "reward.yaml"
    path.write_text(f"scorers: [{{type: classifier, name: rm, model: {reward_model}, device: cpu}}]")
    assert main(["check", "--config", str(path)]) == 0
    assert "to know:\n  rm: rows are packed: no padding is computed" in capsys.readouterr().out


def test_batches_are_length_sorted_and_keep_to_the_limit_with_padding() -> None:
    # padded: 9 alone (18 would pass 12), then 4+4 -> 8 and a third 4 -> 12, then the rest
    assert list(batches([4, 9, 4, 2, 4], max_batch_tokens=12)) == [[1], [0, 2, 4], [3]]
    assert list(batches([50], max_batch_tokens=12)) == [[0]]
    assert list(batches([], max_batch_tokens=12)) == []
    # without padding: 9, then 4+4+4, then the rest
    assert list(batches([4, 9, 4, 2, 4], max_batch_tokens=12, pads=False)) == [[1], [0, 2, 4], [3]]
    assert list(batches([9, 1, 1, 1], max_batch_tokens=12, pads=False)) == [[0, 1, 2, 3]]


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


# ----------------------------------------------------------------------------------------------------- chat templates


def without_template(folder: Path) -> str:
    model = save_reward_model(folder)
    (folder / "chat_template.jinja").unlink()
    return model


def test_a_tokenizer_without_a_chat_template_is_said_when_it_loads_with_the_way_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "reward_server"):
        scorer = loaded(without_template(tmp_path))
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("scorer 'rm': groups of messages will fail, since the tokenizer of model ")
    assert "has no chat template; set chat_template to one" in said
    assert "or send prompts and completions as text" in said
    assert "no chat template" in scorer.notes[-1]
    assert values(scorer, ["yes"])[0] is not None
    with pytest.raises(InvalidGroupError, match=r"scorer 'rm': the group holds messages, and .* set chat_template"):
        values(scorer, as_messages(["yes"]), [{"role": "user", "content": "Is it?"}])


def test_a_chat_template_may_be_given_as_text_or_file_and_is_part_of_the_version(
    tmp_path: Path, reward_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = [{"role": "user", "content": "Is it?"}]
    (tmp_path / "mine.jinja").write_text(CHAT_TEMPLATE)
    with caplog.at_level(logging.WARNING, "reward_server"):
        by_text = loaded(without_template(tmp_path / "rm"), chat_template=CHAT_TEMPLATE)
        by_file = make(reward_model, base_dir=tmp_path, chat_template="mine.jinja")
        by_file.load()
    assert caplog.records == []
    expected = values(loaded(reward_model), as_messages(["yes"]), prompt)
    assert values(by_text, as_messages(["yes"]), prompt) == pytest.approx(expected)
    assert values(by_file, as_messages(["yes"]), prompt) == pytest.approx(expected)
    other = loaded(reward_model, chat_template="{{ messages }}")
    assert len({scorer.version for scorer in (loaded(reward_model), by_file, other)}) == 3
    assert "is neither a file in" in load_error(make(reward_model, chat_template="none.jinja"))


@pytest.mark.slow
def test_a_server_says_to_the_caller_that_a_chat_template_is_missing(
    tmp_path: Path, serve: Callable[..., ServerProcess]
) -> None:
    options = {"type": "classifier", "name": "rm", "model": without_template(tmp_path), "device": "cpu"}
    with RewardClient(serve(options).endpoint) as client:
        assert client.score(make_group(["yes"], "Is it? ")).scorers[0].scores[0].status is Status.OK
        with pytest.raises(InvalidGroupError, match="has no chat template; set chat_template"):
            client.score(make_group(as_messages(["yes"]), [{"role": "user", "content": "Is it?"}]))
