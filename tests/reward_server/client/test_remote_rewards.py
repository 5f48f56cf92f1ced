"""`remote_rewards` in stock TRL trainers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reward_server.client import remote_rewards
from reward_server.errors import ConfigError, ScoringFailedError
from tests.support import scoring
from tests.support.builders import make_dataset
from tests.support.servers import SCORING, function

Serve = Callable[..., Any]


def group_function(name: str) -> dict[str, Any]:
    return {"type": "group_function", "name": name, "function": f"{SCORING}:{name}"}


async def test_the_functions_of_a_server_share_one_call_a_group(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEN_GROUPS", str(tmp_path / "seen"))
    rank, vowels = remote_rewards(
        serve(group_function("rank_in_group"), function("vowels")).endpoint, num_generations=2
    )
    rows = {"prompts": ["p", "p", "q", "q"], "completions": ["aa", "b", "c", "dd"]}
    assert await rank(**rows) == [1.0, 0.0, 0.0, 1.0]
    assert await vowels(**rows) == pytest.approx([2 / 3, 0, 0, 0])
    assert len((tmp_path / "seen").read_text().splitlines()) == 2


async def test_without_num_generations_a_group_ends_where_the_prompt_changes(serve: Serve) -> None:
    (vowels,) = remote_rewards(serve(function("vowels")).endpoint)
    assert len(await vowels(prompts=["p", "p", "q"], completions=["a", "b", "c"])) == 3


def test_a_scorer_that_compares_needs_num_generations(serve: Serve) -> None:
    with pytest.raises(ConfigError, match=r"rank_in_group.*num_generations"):
        remote_rewards(serve(group_function("rank_in_group")).endpoint)


async def test_a_torn_group_is_refused_with_the_numbers(serve: Serve) -> None:
    (vowels,) = remote_rewards(serve(function("vowels")).endpoint, num_generations=2)
    with pytest.raises(ConfigError, match=r"num_generations \(2\) must divide the rows of this rank \(3\)"):
        await vowels(prompts=["p", "p", "q"], completions=["a", "b", "c"])


async def test_a_failed_score_raises_and_is_never_a_number(serve: Serve) -> None:
    good, bad = remote_rewards(serve(function("vowels"), function("raises")).endpoint)
    rows = {"prompts": ["p", "p"], "completions": ["a", "b"]}
    with pytest.raises(ScoringFailedError, match=r"'raises' failed on 2 of 2.*FAILED: KeyError"):
        await bad(**rows)
    assert len(await good(**rows)) == 2


@pytest.mark.oldest_trl
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sync"), [("GRPO", False), ("RLOO", True)])
def test_a_stock_trainer_learns_the_same_from_the_service_as_from_local_functions(
    tiny_model: str, tmp_path: Path, serve: Serve, kind: str, sync: bool
) -> None:
    import trl  # noqa: PLC0415

    config, trainer_class = getattr(trl, f"{kind}Config"), getattr(trl, f"{kind}Trainer")
    common = {
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    names = ["vowels", "even_length", "target_share", "logged"]

    def train(rewards: list[Any], weights: list[float]) -> Any:
        args = config(str(tmp_path / "run"), reward_weights=weights, **common)
        trainer = trainer_class(tiny_model, reward_funcs=rewards, args=args, train_dataset=make_dataset())
        trainer.train()
        return trainer

    endpoint = serve(*[function(name, weight=0.5) for name in names]).endpoint
    functions = remote_rewards(endpoint, num_generations=4, sync=sync)
    remote = train(functions, [reward.weight for reward in functions])
    local = train([getattr(scoring, name) for name in names], [0.5] * 4)
    for name, value in remote.model.state_dict().items():
        assert value.equal(local.model.state_dict()[name])
    assert remote.state.log_history[0]["rewards/logged/mean"] == local.state.log_history[0]["rewards/logged/mean"]
