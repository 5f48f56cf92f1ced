"""Reward models whose checkpoints have Python code of their own: run on one word only, whatever they answer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from reward_server.cli.commands import check
from reward_server.config import config_from_mapping, digest_of
from reward_server.errors import ConfigError
from tests.support.reward_models import (
    COMPLETIONS,
    load_error,
    loaded,
    make,
    save_model_with_code,
    save_reward_model,
    values,
)


def answers_of(model: str, texts: list[str]) -> Any:
    """The heads' values for each text, [texts, 3], from the checkpoint's code without padding."""
    import torch  # noqa: PLC0415
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(model)
    reader = AutoModel.from_pretrained(model, trust_remote_code=True)
    reader.config.answers = "score"
    with torch.inference_mode():
        rows = [reader(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)) for text in texts]
    return torch.cat([row.rewards for row in rows])


TEXTS = [f"Is it? {text}" for text in COMPLETIONS]


@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("answers", ["logits", "tensor", "rewards"])
def test_logits_a_bare_tensor_and_rewards_are_understood(tmp_path: Path, answers: str, auto_class: str) -> None:
    model = save_model_with_code(tmp_path, answers, auto_class)
    expected = answers_of(save_model_with_code(tmp_path / "same", answers), TEXTS)[:, 0].tolist()
    assert values(loaded(model, trust_remote_code=True), COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_a_score_stands_before_the_objectives_that_it_sums_up(tmp_path: Path) -> None:
    model = save_model_with_code(tmp_path, "score")
    objectives = answers_of(model, TEXTS)
    whole = values(loaded(model, trust_remote_code=True), COMPLETIONS)
    assert whole == pytest.approx(objectives.sum(-1).tolist(), abs=1e-5)
    second = values(loaded(model, trust_remote_code=True, output_field="rewards", label=1), COMPLETIONS)
    assert second == pytest.approx(objectives[:, 1].tolist(), abs=1e-5)
    assert "has 3 labels; set label to an index from 0 to 2" in load_error(
        make(model, trust_remote_code=True, output_field="rewards")
    )


def test_an_output_that_cannot_be_read_is_refused_when_the_model_loads(tmp_path: Path) -> None:
    a_tuple = load_error(make(save_model_with_code(tmp_path / "a", "tuple"), trust_remote_code=True))
    assert "gives no scores: its output (tuple) has no tensor score or scores or logits" in a_tuple
    no_such = load_error(make(save_model_with_code(tmp_path / "b", "score"), trust_remote_code=True, output_field="v"))
    assert "has no tensor v; set output_field to one of rewards, score, logits" in no_such
    per_token = load_error(make(save_model_with_code(tmp_path / "c", "steps"), trust_remote_code=True))
    assert "and not with a score for each text; see steps" in per_token
    per_text = load_error(make(save_model_with_code(tmp_path / "d"), trust_remote_code=True, steps={}))
    assert "and not with a score for each token, since steps is set" in per_text


def test_the_code_of_a_checkpoint_is_refused_without_the_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model_with_code(tmp_path)
    code = tmp_path / "modeling_tiny_rm.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + code.read_text())
    monkeypatch.setenv("HF_HUB_TRUST_REMOTE_CODE", "1")
    message = load_error(make(model))
    assert "has Python code of its own, which would run in this server" in message
    assert "set trust_remote_code: true" in message
    assert not (tmp_path / "ran").exists()
    for word in ("true", 1, "yes"):
        with pytest.raises(ConfigError, match="trust_remote_code"):
            make(model, trust_remote_code=word)


def test_the_code_that_runs_is_named_in_log_check_and_digest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model_with_code(tmp_path)
    with caplog.at_level(logging.WARNING, "reward_server"):
        scorer = loaded(model, trust_remote_code=True)
    said = [record.message for record in caplog.records if "trust_remote_code" in record.message]
    assert said == [
        f"scorer 'rm': trust_remote_code is on, so code of the checkpoint {model} runs in this process: "
        "modeling_tiny_rm.TinyRMConfig, modeling_tiny_rm.TinyRM"
    ]
    assert check(config_from_mapping({"scorers": [scorer.options.model_dump(exclude_unset=True)]}), None) == 0
    assert "rm: trust_remote_code: code of the checkpoint runs in the server: modeling" in capsys.readouterr().out
    without = make(model).options
    assert digest_of([scorer.options], ["1"]) != digest_of([without], ["1"])


def test_other_code_of_a_checkpoint_is_another_version(tmp_path: Path) -> None:
    model = save_model_with_code(tmp_path)
    before = loaded(model, trust_remote_code=True).version
    code = tmp_path / "modeling_tiny_rm.py"
    code.write_text(code.read_text() + "\n# changed\n")
    assert loaded(model, trust_remote_code=True).version != before


def test_the_word_costs_a_checkpoint_without_code_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = save_reward_model(tmp_path)
    with caplog.at_level(logging.WARNING, "reward_server"):
        scorer = loaded(model, trust_remote_code=True)
    assert caplog.records == []
    assert not any("trust_remote_code" in note for note in scorer.notes)
    assert values(scorer, ["yes"]) == values(loaded(model), ["yes"])


def test_a_suffix_stands_at_the_end_and_is_not_cut_off(tmp_path: Path) -> None:
    model = save_reward_model(tmp_path)
    marked = loaded(model, suffix="#")
    assert values(marked, ["ab"], "Q:") == pytest.approx(values(loaded(model), ["ab#"], "Q:"))
    cut = loaded(model, suffix="#", max_length=4, truncate="right")
    assert values(cut, ["abcdef"], "Q:") == pytest.approx(values(loaded(model), ["a#"], "Q:"))
