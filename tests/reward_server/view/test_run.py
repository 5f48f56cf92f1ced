"""A real run, trained and recorded, and looked at: `output_dir` with its metrics, and the server's records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reward_server.view import filters, overview
from reward_server.view.sources import sources_of
from reward_server.view.store import Store
from tests.support.browser import Page, browser, view

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

ROOT = Path(__file__).parents[3]
TRAIN = """
import sys
from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from grpo_plugin.cli.callbacks import MetricsFile
from tests.support.builders import make_dataset

model, run, reward = sys.argv[1:]
args = RemoteGRPOConfig(
    run, reward_config=reward, max_steps=3, num_generations=4, per_device_train_batch_size=8, logging_steps=1,
    max_completion_length=8, use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
)
trainer = RemoteGRPOTrainer(model, args=args, train_dataset=make_dataset(), callbacks=[MetricsFile()])
trainer.train()
"""


def test_a_run_of_three_steps_is_seen_with_its_records_and_what_the_trainer_logged(
    tiny_model: str, tmp_path: Path
) -> None:
    run, reward = tmp_path / "run", tmp_path / "reward.json"
    scorers = [{"type": "length", "name": "short", "max": 20}, {"type": "keywords", "name": "e", "words": ["e"]}]
    records = {"path": str(run / "records"), "format": "parquet"}
    reward.write_text(json.dumps({"scorers": scorers, "records": records}))
    trained = subprocess.run(
        [sys.executable, "-c", TRAIN, tiny_model, str(run), str(reward)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert trained.returncode == 0, trained.stderr[-3000:]

    store = Store(sources_of([run]))
    assert filters.scorer_names(store) == ["e", "short"]
    found = filters.find(store, filters.Filter())
    assert (found.all_groups, found.all_completions) == (6, 24)  # 3 steps of 2 groups of 4
    assert len(overview.metrics_of(run).query("name == 'reward/exposed_wait_s'")) == 3
    store.close()

    with view(run) as (url, _), browser() as opened:
        page = Page(opened, url)
        page.open("", "Overview")
        page.see("run: wait for rewards, seconds a step")
        page.open("view=hacking&trusted=short", "Hacking")
        page.see("arked: ")
        page.open("view=groups", "Groups")
        page.see("24 completions in 6 groups match.")
        page.see("completion 3 · reward")
        assert page.foreign_requests() == []
