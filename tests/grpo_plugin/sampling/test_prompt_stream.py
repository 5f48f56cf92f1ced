"""The prompts that come in place of others: every prompt once before any comes again, and after a break no other."""

from __future__ import annotations

import json

from grpo_plugin.sampling.prompt_stream import PromptStream


def test_each_pass_has_every_prompt_once_in_an_order_of_its_own() -> None:
    stream = PromptStream(10, seed=3)
    taken = [index for _ in range(10) for index in stream.take(3)]
    passes = [taken[:10], taken[10:20], taken[20:]]
    assert all(sorted(part) == list(range(10)) for part in passes)
    assert passes[0] != passes[1] != passes[2]


def test_the_order_is_the_seeds() -> None:
    assert PromptStream(50, seed=3).take(50) == PromptStream(50, seed=3).take(50)
    assert PromptStream(50, seed=3).take(50) != PromptStream(50, seed=4).take(50)


def test_after_a_break_it_goes_on_and_gives_first_what_nothing_came_of() -> None:
    whole = PromptStream(20, seed=0)
    first = whole.take(7)
    state = json.loads(json.dumps(whole.state(unused=first[5:])))
    resumed = PromptStream(20, seed=0)
    resumed.load(state)
    assert resumed.take(4) == first[5:] + whole.take(2)
    assert resumed.take(3) == whole.take(3)
    again = PromptStream(20, seed=0)
    again.load(state)
    assert again.take(1) == [first[5]]
    assert again.state(unused=[])["returned"] == [first[6]], "what was given back and not taken yet is kept"


def test_what_is_given_back_comes_before_any_other() -> None:
    stream = PromptStream(20, seed=0)
    first = stream.take(5)
    stream.give_back(first[3:])
    assert stream.take(3) == [*first[3:], *PromptStream(20, seed=0).take(6)[5:]]


def test_of_one_prompt_it_comes_every_time() -> None:
    assert PromptStream(1, seed=0).take(3) == [0, 0, 0]
