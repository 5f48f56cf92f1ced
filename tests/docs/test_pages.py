"""What README and docs say runs: every block of code, every link; the generated page is fresh."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_plugin import RemoteGRPOConfig
from reward_server.config import config_from_mapping
from reward_server.evaluation.cases import read_cases
from tests.support.pages import Block, Reader, blocks_of
from tests.support.training import ON_CPU

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LANGUAGES = {"python", "bash", "yaml", "toml", "text", "json", ""}
TRAINER_KEYS = {field.name for field in dataclasses.fields(RemoteGRPOConfig)}
SERVER_KEYS = {
    "scorers",
    "tls",
    "tokens_file",
    "quotas",
    "metrics",
    "records",
    "cache",
    "limits",
    "listen",
    "processes",
}


@pytest.fixture
def reader(tmp_path: Path, tiny_model: str) -> Iterator[Reader]:
    """In a folder where the hub's names that our pages use are folders, beside the repository's configurations."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    model, data = tmp_path / "Qwen" / "Qwen2.5-0.5B-Instruct", tmp_path / "openai" / "gsm8k"
    shutil.copytree(tiny_model, model)
    data.mkdir(parents=True)
    (data / "README.md").write_text("---\nconfigs:\n- config_name: main\n  data_files: train.jsonl\n---\n")
    (data / "train.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": "So it is 4.\n#### 4"}) + "\n")
    following = Reader(tmp_path)
    yield following
    following.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_page_runs_as_a_reader_follows_it(name: str, reader: Reader) -> None:
    blocks = [block for block in blocks_of(ROOT / name) if not block.not_run]
    for block in blocks:
        if block.file:
            reader.save(block)
    for block in blocks:
        if block.language == "python":
            reader.run_python(block)
        for command in block.commands if block.language == "bash" else []:
            run(command, reader, block.exit_code)


def run(command: str, reader: Reader, exit_code: int) -> None:
    if command.startswith("make "):  # setting up and testing is what CI does with the very commands
        target = command.split()[1]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no make target {target}"
    else:
        reader.run_command(command, exit_code)


@pytest.mark.parametrize("name", NAMES)
def test_the_configurations_on_a_page_are_ones_that_the_server_reads(name: str, tmp_path: Path) -> None:
    for block in blocks_of(ROOT / name):
        if block.language == "yaml" and not block.not_run:
            mapping = yaml.safe_load(block.text)
            if isinstance(mapping, list):
                read_cases([saved(block, tmp_path)])
                continue
            assert isinstance(mapping, dict), block.text
            if "applications" in mapping:  # a file for Ray Serve
                for deployment in mapping["applications"][0]["deployments"]:
                    config_from_mapping(deployment["user_config"], tmp_path, name)
                continue
            if set(mapping) <= TRAINER_KEYS:
                RemoteGRPOConfig(str(tmp_path), **ON_CPU, **mapping)
                continue
            assert set(mapping) & SERVER_KEYS, f"{name}: what is this YAML for?\n{block.text}"
            config_from_mapping(completed(mapping), tmp_path, name)
        if block.language == "toml":
            tomllib.loads(block.text)


def saved(block: Block, folder: Path) -> Path:
    (path := folder / "cases.yaml").write_text(block.text)
    return path


def completed(mapping: dict[str, Any]) -> dict[str, Any]:
    """Classes of the reader's own files are not there yet when only the configuration is read."""
    scorers = mapping.get("scorers", [{"type": "length", "name": "length", "max": 10}])
    return {**mapping, "scorers": [scorer for scorer in scorers if ".py:" not in scorer["type"]] or ANY}


ANY = [{"type": "length", "name": "length", "max": 10}]


@pytest.mark.parametrize("name", NAMES)
def test_every_block_has_a_language_that_is_checked(name: str) -> None:
    blocks: list[Block] = blocks_of(ROOT / name)
    assert len(blocks) == (ROOT / name).read_text().count("\n```") / 2
    assert {block.language for block in blocks} <= LANGUAGES


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue  # not fetched: tests reach no network
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{name} links to {target}"
        assert not anchor or anchor in anchors_of(linked), f"{name} links to {target}, and there is no such heading"


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_for_a_person_in_a_hurry() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in sorted((ROOT / "docs").glob("*.md")) if f"(docs/{page.name})" not in readme] == []


def test_the_page_of_options_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate_options.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
