"""The page in a real browser, on records of a real server: each view, hostile texts, no other host, the token."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from reward_server.launch import ServerProcess
from reward_server.observability.record_lines import RecordLines
from reward_server.types import Completion, Group
from tests.support.browser import Page, browser, view
from tests.support.hacked import PHRASE, record
from tests.support.processes import wait_until

pytestmark = pytest.mark.slow

Serve = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(chromium: Any, hacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab on a page over records of both forms and a run folder."""
    run = tmp_path_factory.mktemp("run")
    (run / "metrics.jsonl").write_text('{"step": 1, "reward/exposed_wait_s": 0.25, "eval_reward": 0.5}\n')
    with view(hacked / "parts", hacked / "lines.jsonl", run) as (url, _):
        yield Page(chromium, url)


def test_each_view_is_shown_and_asks_no_other_host_for_anything(page: Page, tmp_path: Path) -> None:
    page.open("", "Overview")
    for title in ("keyword: mean and deciles", "share of groups without signal", "wait for rewards, seconds a step"):
        page.see(title)
    page.tab.locator("[data-testid=stVegaLiteChart] svg, [data-testid=stVegaLiteChart] canvas").first.wait_for()
    page.tab.screenshot(path=tmp_path / "overview.png")
    assert (tmp_path / "overview.png").stat().st_size > 20_000
    page.open("view=compare", "Compare")
    page.see("96 groups are in both files.")
    page.see("Kendall's τ of the rewards within groups: 1.000")
    assert len(page.requests) > 20
    assert page.foreign_requests() == []


def test_a_link_to_the_hacking_view_shows_the_planted_hack_marked(page: Page) -> None:
    page.open("view=hacking&trusted=correct", "Hacking")
    page.see("Signs are marked: the reward rose")
    page.see("⚑ a phrase spreads among the best")
    assert PHRASE in page.text
    page.open("view=hacking", "Hacking")
    page.see("Nothing is marked: the reward rose")


def test_a_filter_finds_groups_a_group_is_read_and_the_link_shows_a_colleague_the_same(
    page: Page, chromium: Any
) -> None:
    page.open("view=groups", "Groups")
    box = page.tab.get_by_label("Completion contains (case counts)")
    box.fill("Speaking as an expert")
    box.press("Enter")
    page.tab.wait_for_url("**text=Speaking*")
    page.tab.get_by_label("Status").click()
    page.tab.get_by_role("option", name="OK").click()
    page.tab.wait_for_url("**status=OK*")
    page.see("A box holds")
    page.see("keyword  1  OK")
    page.tab.get_by_text("Differences between two completions").click()
    page.tab.get_by_label("To completion").wait_for()
    colleague = Page(chromium, page.url)
    colleague.open(page.tab.url.split("?")[1], "Groups")
    colleague.see("keyword  1  OK")
    matching = next(line for line in page.text.splitlines() if line.endswith("groups match."))
    colleague.see(matching)
    assert not matching.startswith("768 completions")
    colleague.tab.close()


HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "![x](http://attacker.example/pixel.png) [click](http://attacker.example) **bold** $x^2$ :red[red]",
    "\x1b[31mred\x1b[0m \u202eesrever\u202c zero\u200bwidth",
    "<a href='http://attacker.example'>link</a>\n# heading\n```\nfence",
)


def test_hostile_texts_are_shown_as_text(serve: Serve, tmp_path: Path, chromium: Any) -> None:
    name = "<b>&![x](http:--attacker.example)"
    group = Group(
        HOSTILE[1],
        tuple(Completion(text) for text in HOSTILE),
        {"answer": HOSTILE[0]},
        run_id=f"run {name}",
        step=1,
        group_id=f"group {name} {HOSTILE[0]}",
    )
    path = record(serve, tmp_path / "records.jsonl", iter([group]))
    with view(path) as (url, _):
        page = Page(chromium, url)
        page.open("view=groups", "Groups")
        page.see("completion 3 ·")
        for text in (HOSTILE[0], HOSTILE[1], r"\x1b[31mred\x1b[0m \u202eesrever\u202c zero\u200bwidth", "# heading"):
            page.see(text)
        page.tab.get_by_text("Columns of the row").click()
        page.tab.get_by_text("Differences between two completions").click()
        page.tab.get_by_label("To completion").wait_for()
        for other in ("view=hacking", "view=overview"):
            page.open(other, other.removeprefix("view=").capitalize())
            page.see("Read what is new")
        assert page.tab.evaluate("window.hacked") is None
        assert page.tab.locator("a[href*=attacker], img[src*=attacker]").count() == 0
        assert page.foreign_requests() == []


def test_records_are_shown_as_they_are_written_and_files_that_are_none_get_a_sentence(
    tmp_path: Path, chromium: Any, hacked: Path
) -> None:
    (tmp_path / "foreign.jsonl").write_text('{"question": "2 + 2?"}\n')
    growing = tmp_path / "growing.jsonl"
    growing.touch()
    lines = (hacked / "lines.jsonl").read_text().splitlines()
    sink = RecordLines(growing, max_bytes=1 << 20, keep=2)
    with view(growing, tmp_path / "foreign.jsonl") as (url, _):
        page = Page(chromium, url)
        page.tab.goto(url)
        page.see("Nothing is recorded yet.")
        page.see("foreign.jsonl, line 1, is not a record of a reward server")
        for count in (1, 2):
            sink.write([f"{lines[count]}\n".encode()])
            page.open("view=groups", "Groups")
            page.see(f"{4 * count} completions in {count} groups match.")
    sink.close()


def test_nothing_is_shown_without_the_token_and_neither_log_nor_link_holds_it(
    chromium: Any, hacked: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(token := "s3cret-of-a-test-0123456789")
    with view(hacked / "parts", "--token-file", tmp_path / "token") as (url, process):
        page = Page(chromium, url)
        page.tab.goto(f"{url}/?view=groups")
        page.see("This page needs the token")
        assert "completions in" not in page.text
        page.tab.goto(f"{url}/?view=groups&token=wrong-of-a-test-0123456789")
        page.see("This is not the token.")
        assert "completions in" not in page.text
        page.open(f"view=groups&token={token}", "Groups")
        page.see("384 completions in 96 groups match.")
        page.tab.get_by_label("Status").click()
        page.tab.get_by_role("option", name="OK").click()
        page.tab.wait_for_url("**status=OK*")
        assert token not in page.tab.url
        assert token not in page.tab.content()
        page.tab.goto(f"{url}/?view=groups")  # another session is asked again, and a person may type it
        page.tab.get_by_label("Token", exact=True).fill(token)
        page.tab.get_by_label("Token", exact=True).press("Enter")
        page.see("384 completions in 96 groups match.")
        process.terminate()
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert token not in process.stdout.read()


def test_a_page_listens_on_this_machine_alone_and_on_the_port_that_was_asked_for(hacked: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with view(hacked / "parts", "--port", str(port)) as (url, process):
        assert url == f"http://127.0.0.1:{port}"
        listening = [line.split()[1] for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]]
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening
        with ExitStack() as stack, pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1, port {port}"):
            stack.enter_context(view(hacked / "parts", "--port", str(port)))
    began = time.monotonic()
    assert wait_until(lambda: process.poll() is not None, 10)
    assert time.monotonic() - began < 10
