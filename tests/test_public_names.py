"""What users were told to import or to name works from where they were told, wherever the code has moved since."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

# Every name by the module that README, a docstring or a shipped configuration gave for it, since the first release.
PUBLIC = {
    "grpo_plugin": ["RemoteGRPOConfig", "RemoteGRPOTrainer"],
    "grpo_plugin.config": ["RemoteGRPOConfig"],
    "grpo_plugin.errors": ["UsageError"],
    "grpo_plugin.policies": ["DropGroup", "DropSample", "DropScorer", "Drops", "FailurePolicy", "Raise"],
    "grpo_plugin.train": ["main"],
    "grpo_plugin.trainer": ["RemoteGRPOTrainer"],
    "reward_server.client": [
        "AsyncRewardClient",
        "ClientTLS",
        "CohortClient",
        "Endpoint",
        "RewardClient",
        "remote_rewards",
    ],
    "reward_server.config": ["ServerConfig", "config_from_mapping"],
    "reward_server.errors": [
        "CallError",
        "ConfigError",
        "CredentialsError",
        "DeadlineError",
        "GroupTooLargeError",
        "InvalidGroupError",
        "OverloadedError",
        "RewardServerError",
        "ScorerLoadError",
        "ScoringFailedError",
        "UnavailableError",
        "WireVersionError",
    ],
    "reward_server.launch": ["ServerProcess", "SupervisedServer", "launch_server", "launch_supervised"],
    "reward_server.scorers.base": [
        "Place",
        "Result",
        "Scorer",
        "ScorerOptions",
        "failed",
        "text_of",
        "to_score",
        "to_scores",
    ],
    "reward_server.scorers.batched": ["BatchedScorer", "Sample", "batches"],
    "reward_server.scorers.classifier": ["ClassifierScorer"],
    "reward_server.scorers.code": ["CodeScorer"],
    "reward_server.scorers.composite": ["CompositeScorer"],
    "reward_server.scorers.endpoint": ["EndpointScorer"],
    "reward_server.scorers.functions": ["FunctionScorer", "GroupFunctionScorer"],
    "reward_server.scorers.judge": ["JudgeScorer"],
    "reward_server.scorers.math": ["MathScorer"],
    "reward_server.scorers.relevance": ["RelevanceScorer"],
    "reward_server.supervise": ["SupervisedServer", "launch_supervised"],
    "reward_server.types": [
        "Completion",
        "Group",
        "GroupScores",
        "Limits",
        "Score",
        "ScorerInfo",
        "ScorerScores",
        "ServerInfo",
        "Status",
    ],
}
COMMANDS = [
    [sys.executable, "-m", "grpo_plugin.train"],
    [sys.executable, "-m", "grpo_plugin.cli"],
    [sys.executable, "-m", "reward_server.cli"],
    [str(Path(sys.executable).parent / "grpo")],
    [str(Path(sys.executable).parent / "reward-server")],
]


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_name_is_where_users_were_told(module: str) -> None:
    missing = [name for name in PUBLIC[module] if not hasattr(importlib.import_module(module), name)]
    assert not missing


def test_a_moved_name_is_the_same_object_from_both_places() -> None:
    for old, new in [
        ("reward_server.supervise:launch_supervised", "reward_server.launch:launch_supervised"),
        ("reward_server.scorers.base:Place", "reward_server.scorers.base:ExecutorKind"),
        ("grpo_plugin.policies:DropGroup", "grpo_plugin.rewards.policies:DropGroup"),
        ("grpo_plugin.trainer:RemoteGRPOTrainer", "grpo_plugin:RemoteGRPOTrainer"),
    ]:
        assert importlib.metadata.EntryPoint("", old, "").load() is importlib.metadata.EntryPoint("", new, "").load()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(Path(part).name for part in command))
def test_a_command_answers_for_help(command: list[str]) -> None:
    run = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage:")


def test_a_third_partys_scorer_by_the_first_releases_names_still_runs(tmp_path: Path) -> None:
    (tmp_path / "shouting.py").write_text(
        "from reward_server.scorers.base import Place, Result, Scorer, ScorerOptions, text_of, to_scores\n\n\n"
        "class Options(ScorerOptions):\n    limit: int = 3\n\n\n"
        "class Shouting(Scorer[Options]):\n    Options = Options\n    place = Place.THREAD\n\n"
        "    def score(self, group):\n"
        "        marks = [text_of(content).count('!') for content in group.contents()]\n"
        "        return Result(to_scores([-float(n > self.options.limit) for n in marks], len(group)))\n"
    )
    (tmp_path / "reward.yaml").write_text("scorers: [{type: 'shouting.py:Shouting', name: shouting}]\n")
    command = [sys.executable, "-m", "reward_server.cli", "check", "--config", str(tmp_path / "reward.yaml")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
