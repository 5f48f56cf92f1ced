"""The short way from bytes to a group gives what the long way gives, or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from typing import Any

import pytest

from reward_server import wire
from reward_server.errors import InvalidGroupError
from reward_server.types import Completion, Group
from reward_server.v1 import reward_pb2 as pb
from reward_server.wire_text import text_group

LENGTHS = (0, 1, 121, 122, 123, 124, 125, 126, 127, 128, 129, 16_370, 16_379, 16_381, 16_383, 16_384, 70_000, 2_097_140)
GROUP = Group("prompt", (Completion("naïve 😀 \x00"), Completion("")), {"a": 1}, run_id="run", step=7, group_id="g")


def serialised(group: Group) -> bytes:
    return wire.encode_group(group).SerializeToString()


def by_message(data: bytes) -> Group:
    return wire.decode_group(pb.ScoreGroupRequest.FromString(data))


@pytest.mark.parametrize("length", LENGTHS)
def test_texts_of_every_length_are_read_as_messages_are(length: int) -> None:
    group = Group(
        "p" * length, (Completion("c" * length), Completion("é" * (length // 2))), run_id="r" * (length % 300)
    )
    data = serialised(group)
    assert text_group(data) == by_message(data) == group


@pytest.mark.parametrize("named", [{}, {"run_id": "r"}, {"step": 1 << 20}, {"group_id": "g"}, {"columns": {"a": [1]}}])
def test_names_and_columns_may_be_absent(named: dict[str, Any]) -> None:
    group = Group("p", (Completion("a"),), **named)
    assert text_group(serialised(group)) == group


@pytest.mark.parametrize(
    "group",
    [
        dataclasses.replace(GROUP, scorers=("helpful",)),
        dataclasses.replace(GROUP, step=1 << 40),
        dataclasses.replace(GROUP, step=-1),
        dataclasses.replace(GROUP, prompt=[{"role": "user", "content": "p"}]),
        dataclasses.replace(GROUP, completions=(Completion("a"), Completion("b", token_ids=(1, 2)))),
        dataclasses.replace(GROUP, completions=(Completion("a", columns={"seed": 1}),)),
        dataclasses.replace(GROUP, completions=(Completion("a", prompt="own"),)),
        dataclasses.replace(GROUP, completions=(Completion("\ud83d"),)),
    ],
)
def test_whatever_is_more_than_text_is_left_to_the_messages(group: Group) -> None:
    data = serialised(group)
    assert text_group(data) is None
    assert wire.parse_group(data) == group


def test_damaged_bytes_are_never_read_as_another_group_than_the_messages_read() -> None:
    chance, data = random.Random(0), serialised(GROUP)
    for _ in range(20_000):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        cut = bytes(damaged[: chance.randint(0, len(damaged))])
        for text in (bytes(damaged), cut):
            with contextlib.suppress(InvalidGroupError):
                if (group := text_group(text)) is not None:
                    assert group == by_message(text)
