"""The wire is the .proto: a client in another language, made from it alone, scores a group."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reward_server.launch import launch_server

NODE = Path(__file__).parents[2] / "support" / "node"
PROTOS = Path(__file__).parents[3] / "protos"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("node") is None or shutil.which("npm") is None,
        reason="Node is missing: install node and npm to run a client in another language",
    ),
]


@pytest.fixture
def modules(request: pytest.FixtureRequest) -> Path:
    """node_modules of tests/node/package.json, installed once into pytest's cache folder."""
    folder = request.config.cache.mkdir("node-client")
    package = (NODE / "package.json").read_text()
    installed = folder / "installed.json"
    if not installed.exists() or installed.read_text() != package:
        shutil.copy(NODE / "package.json", folder)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        subprocess.run(command, cwd=folder, check=True, timeout=240)
        installed.write_text(package)
    return folder / "node_modules"


def test_a_node_client_made_from_the_proto_alone_scores_a_group(modules: Path, tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(
        "def f(completions, nested, **_):\n"
        "    assert nested[0] == [[1, None], {'é': True}]\n"
        "    if completions == ['fail']:\n"
        "        raise ValueError('asked for')\n"
        "    if 'fail' in completions:\n"
        "        raise ValueError('one of them')\n"
        "    return [float(isinstance(c, str)) or len(c[0]['content']) for c in completions]\n"
    )
    scorers = [
        {"type": "match", "name": "right", "column": "answer", "weight": 2.0},
        {"type": "function", "name": "f", "function": f"{tmp_path}/f.py:f"},
    ]
    with launch_server({"scorers": scorers, "workers": 1}, listen="127.0.0.1:0") as server:
        answer = run_node(modules, server.endpoint)
        digest = server.config_digest
    assert [scorer["kind"] for scorer in answer["info"]["scorers"]] == ["match", "function"]
    scores = answer["scores"]
    assert (scores["group_id"], scores["config_digest"]) == ("from-node", digest)
    right, f = scores["scorers"]
    assert [score["value"] for score in right["scores"]] == [1, 0, 0]
    assert right["weight"] == 2
    assert [score["status"] for score in f["scores"]] == ["STATUS_OK", "STATUS_OK", "STATUS_FAILED"]
    assert [score.get("value") for score in f["scores"]] == [1, len("forty-two ✓"), None]
    assert f["scores"][2]["message"] == "ValueError: asked for"
    assert answer["refusal"]["code"] == 9, "FAILED_PRECONDITION"
    assert "wire version 1, the caller 9" in answer["refusal"]["details"]


def run_node(modules: Path, endpoint: str) -> Any:
    run = subprocess.run(
        ["node", str(NODE / "score.js"), str(PROTOS), endpoint],
        env={**os.environ, "NODE_PATH": str(modules)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
