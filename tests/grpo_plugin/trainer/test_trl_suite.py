"""TRL's own GRPO tests, with our trainer in place of theirs, and what makes that comparison sound.

Owns the claim that a drop-in subclass breaks nothing that TRL tests. The tests themselves are TRL's and come from a
checkout of it, named by TRL_CHECKOUT; the machinery is `trl_suite`.
"""

import os
from pathlib import Path

import pytest

pytest.importorskip("trl")

from tests.support.trl_suite import vocab
from tests.support.trl_suite.run import Suite, compare

CHECKOUT = os.environ.get("TRL_CHECKOUT")


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif(CHECKOUT is None, reason="TRL_CHECKOUT names no checkout of huggingface/trl to take the tests from")
def test_each_of_trl_s_grpo_tests_that_passes_with_its_trainer_passes_with_ours():
    ours, difference = Suite(Path(CHECKOUT)).lost()
    assert not difference.lost
    assert sum(outcome == "passed" for outcome, _ in ours.values()) > 100


def test_a_test_is_lost_only_if_it_passes_with_trl_s_trainer():
    stock = {"a": ["passed", ""], "b": ["failed", "no such file"], "c": ["skipped", "no GPU"], "d": ["passed", ""]}
    ours = {
        "a": ["failed", "KeyError"],
        "b": ["failed", "no such file"],
        "c": ["skipped", "no GPU"],
        "d": ["passed", ""],
    }
    assert compare(stock, ours).lost == {"a": ["failed", "KeyError"]}


def test_a_test_that_ours_never_ran_is_lost():
    assert compare(stock={"a": ["passed", ""]}, ours={}).lost == {"a": ["missing", "was not collected"]}


def test_a_test_that_only_ours_passes_is_gained():
    difference = compare(stock={"a": ["failed", "KeyError"]}, ours={"a": ["passed", ""], "b": ["passed", ""]})
    assert difference.gained == {"a": ["failed", "KeyError"]}
    assert not difference.lost


@pytest.mark.slow
def test_the_ids_that_trl_s_tests_spell_out_decode_to_a_tool_call():
    tokenizer = vocab.make_tokenizer(vocab.qwen("qwen3"))
    opening = [151657, 198, 4913, 606, 788, 330, 35744, 497, 330, 16370, 788]
    arguments = [5212, 9520, 788, 220, 16, 11248, 151658, 151645]
    assert tokenizer.decode(opening + arguments) == (
        '<tool_call>\n{"name": "increment", "arguments": {"step": 1}}\n</tool_call><|im_end|>'
    )


@pytest.mark.slow
def test_every_id_a_random_model_can_sample_decodes_to_text():
    tokenizer = vocab.make_tokenizer(vocab.PLAIN)
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab.PLAIN.size))
    assert all(tokenizer.decode([index]) for index in range(vocab.PLAIN.size))
