"""What a named token may ask for in a minute, and that the other tokens do not notice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest

from reward_server import wire
from reward_server.client import AsyncRewardClient
from reward_server.config import QuotaConfig, config_from_mapping
from reward_server.errors import ConfigError, OverloadedError
from reward_server.serving.quotas import Quotas
from reward_server.serving.security import Security, TokensFile
from tests.support.builders import make_group
from tests.support.clock import Clock
from tests.support.served import LENGTH, served


def wait_s(quotas: Quotas, completions: int, name: str = "alice") -> float:
    """The seconds that a group is told to wait."""
    with pytest.raises(OverloadedError) as caught:
        quotas.take(name, completions)
    assert caught.value.reason == "quota"
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


def test_a_minutes_worth_may_come_at_once_and_what_is_beyond_waits_until_it_is_earned() -> None:
    clock = Clock()
    quotas = Quotas({"alice": QuotaConfig(completions_per_minute=60)}, clock)
    quotas.take("alice", 60)
    # 60 a minute are one a second: 8 completions need 8 s. The next is told to come after that one: 8 + 8.
    assert wait_s(quotas, 8) == pytest.approx(8.0)
    assert wait_s(quotas, 8) == pytest.approx(16.0)
    quotas.take("bob", 10_000)
    clock.now += 8.0
    quotas.take("alice", 8)


def test_calls_are_limited_apart_from_completions_and_a_refused_one_counts_as_neither() -> None:
    clock = Clock()
    quotas = Quotas({"alice": QuotaConfig(calls_per_minute=2, completions_per_minute=100)}, clock)
    quotas.take("alice", 50)
    wait_s(quotas, 51)
    quotas.take("alice", 50)
    clock.now += 29.0
    assert wait_s(quotas, 1) == pytest.approx(1.0)  # half a minute for a call; of completions there are 48


def test_a_group_beyond_a_whole_minute_goes_when_the_bucket_is_full_and_is_paid_back() -> None:
    clock = Clock()
    quotas = Quotas({"alice": QuotaConfig(completions_per_minute=60)}, clock)
    quotas.take("alice", 180)
    assert wait_s(quotas, 1) == pytest.approx(121.0)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("plain-1\nwith:colon-2\nalice: secret-3\nalice: secret-4\nbob: secret-5\n")
    return path


def test_tokens_may_have_names_and_those_without_stay_as_they_were(tokens: Path) -> None:
    file = TokensFile(tokens)
    found = [file.name_of(token) for token in ("plain-1", "with:colon-2", "secret-3", "secret-4", "secret-5")]
    assert found == ["", "", "alice", "alice", "bob"]
    assert [file.name_of(token) for token in ("alice", "alice: secret-3", "", "secret")] == [None] * 4


def test_a_quota_of_no_token_is_refused_by_its_name(tokens: Path) -> None:
    mapping = {"scorers": [LENGTH], "tokens_file": str(tokens), "quotas": {"alcie": {"calls_per_minute": 1}}}
    with pytest.raises(ConfigError, match=r"quotas\.alcie: no token has that name in .*write a line `alcie: TOKEN`"):
        Security(config_from_mapping(mapping))
    del mapping["tokens_file"]
    with pytest.raises(ConfigError, match="tokens_file, which is not set"):
        Security(config_from_mapping(mapping))


async def test_over_its_quota_a_token_is_pushed_back_and_others_are_not(tokens: Path) -> None:
    quotas = {"alice": {"calls_per_minute": 120}}
    async with served(LENGTH, tokens_file=str(tokens), quotas=quotas) as caller:

        async def send(token: str, index: int) -> grpc.aio.AioRpcError | None:
            request = wire.encode_group(make_group(["ab"], group_id=str(index)))
            try:
                await caller.stub.ScoreGroup(request, metadata=(("authorization", f"Bearer {token}"),))
            except grpc.aio.AioRpcError as error:
                return error
            return None

        ends = [await send("secret-3", index) for index in range(100)]
        ends += [await send("secret-4", index) for index in range(100)]  # of the same name
        refused = [error for error in ends if error is not None]
        assert 70 <= len(refused) <= 80  # 120 at once, and what has been earned meanwhile
        assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "the token 'alice' is over its quota of 120 calls a minute" in (refused[0].details() or "")
        assert "secret" not in (refused[0].details() or "")
        assert 0 < int(dict(refused[0].trailing_metadata() or ())["grpc-retry-pushback-ms"]) <= 500
        assert [await send(token, 0) for token in ("secret-5", "plain-1")] == [None, None]


async def test_a_client_waits_its_quota_out(tokens: Path) -> None:
    quotas = {"alice": {"calls_per_minute": 600}}
    async with served(LENGTH, tokens_file=str(tokens), quotas=quotas) as caller:
        async with AsyncRewardClient(caller.server.endpoints[0], token="secret-3") as client:
            groups = [make_group(["ab"], group_id=str(index)) for index in range(615)]
            answers = await asyncio.gather(*(client.score(group, timeout_s=30) for group in groups))
    assert {answer.scorers[0].scores[0].value for answer in answers} == {1.0}
