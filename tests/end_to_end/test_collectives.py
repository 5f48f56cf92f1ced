"""Ranks start the same collectives in the same order, whatever the loss, the KL term and the fillers: none hangs."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.end_to_end.collectives import BUDGETS, KL_TERMS, LEVELS, LOSSES
from tests.end_to_end.launching import launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ARGS = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "steps_per_generation": 4,
    "num_iterations": 2,  # so that old log-probabilities are computed
    "num_generations": 4,
    "max_completion_length": 128,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "ddp_timeout": 120,
    "reward_timeout_s": 60.0,
}


TIMEOUT_S = 100  # on a CPU transformers sets none for the ranks, which would wait for one another for 30 minutes


def test_two_ranks_start_the_same_collectives_for_every_loss_kl_term_and_plan(tiny_model: str, tmp_path: Path) -> None:
    code, output = launch("cpu_ddp", "collectives.py", tmp_path, TIMEOUT_S, spec={"model": tiny_model, "args": ARGS})
    first, second = ((tmp_path / "spec" / f"{rank}.log").read_text().splitlines() for rank in range(2))
    for number, (one, other) in enumerate(itertools.zip_longest(first, second, fillvalue="nothing")):
        assert one == other, f"the ranks part at collective {number}: {one!r} and {other!r}"
    assert code == 0, output[-4000:]

    fillers = [json.loads((tmp_path / "spec" / f"{rank}.json").read_text()) for rank in range(2)]
    assert len(fillers[0]) == len(LOSSES) * len(LEVELS) * len(KL_TERMS) * len(BUDGETS)
    for case in fillers[0]:
        of_ranks = sorted(rank[case] for rank in fillers)
        runs_fillers = case.endswith(", fillers") and not case.startswith("bnpo")  # whose micro-batches stay TRL's
        assert (of_ranks[0] == 0 and of_ranks[1] > 0) if runs_fillers else of_ranks == [0, 0], (case, of_ranks)
    counts = Counter(line.split("\t")[0] for line in first)
    assert min(counts.values()) >= 2, "each case exchanges its table of rows, and logs"
