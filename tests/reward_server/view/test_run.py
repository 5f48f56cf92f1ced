"""A real run, trained and recorded by the quickstart, and looked at: each view of the page over its folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reward_server.view import filters, overview
from reward_server.view.sources import sources_of
from reward_server.view.store import Store
from tests.support.browser import Page, browser, view
from tests.support.commands import reward_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

STEPS, GROUPS, COMPLETIONS = 5, 5 * 32, 5 * 32 * 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short quickstart."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    grpo = [str(Path(sys.executable).parent / "grpo"), "quickstart", "--output-dir", str(folder)]
    subprocess.run([*grpo, "--max-steps", str(STEPS)], check=True, capture_output=True, timeout=240)
    return folder


def test_a_run_holds_all_that_it_was_trained_on_and_what_it_logged(run: Path) -> None:
    store = Store(sources_of([run]))
    assert filters.scorer_names(store) == ["letters_in_place", "sorted"]
    found = filters.find(store, filters.Filter())
    assert (found.all_groups, found.all_completions) == (GROUPS, COMPLETIONS)
    assert store.query("SELECT count(advantage) AS n FROM completions").n[0] == COMPLETIONS
    assert len(overview.metrics_of(run).query("name == 'reward/exposed_wait_s'")) == 1
    store.close()


def test_each_view_shows_the_run_and_its_records_scored_again(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    done = reward_server("rescore", run / "records", "--config", run / "reward.yaml", "--out", again)
    assert done.returncode == 0, done.stderr
    with view(run, again) as (url, _), browser() as opened:
        page = Page(opened, url)
        page.open("", "Overview")
        page.see("run: wait for rewards, seconds a step")
        page.open("view=hacking&trusted=sorted", "Hacking")
        page.see("arked: ")
        page.open("view=groups&scorer=sorted&least=1&status=OK", "Groups")
        page.see("groups match.")
        page.see("sorted  1  OK")
        page.tab.screenshot(path=tmp_path / "groups.png")
        assert (tmp_path / "groups.png").stat().st_size > 20_000
        page.open("view=compare", "Compare")
        page.see(f"{GROUPS} groups are in both files.")
        page.see("Kendall's τ of the rewards within groups: 1.000")
        assert page.foreign_requests() == []
