"""Alerts, dashboard and autoscalers ask for what a running server exports, in PromQL that Prometheus reads."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from reward_server.client import RewardClient
from reward_server.errors import RewardServerError
from reward_server.types import Status
from tests.support import lengths
from tests.support.builders import make_group
from tests.support.observed import served_by_cli
from tests.support.servers import broken
from tests.support.tools import tool

DEPLOY = Path(__file__).parents[2] / "configs" / "deploy"
MONITORING = DEPLOY / "monitoring"
PROMTOOL = "apt-get download prometheus && dpkg -x prometheus_*.deb . && cp usr/bin/promtool /usr/local/bin"

Exported = dict[str, dict[str, set[str]]]
"""The metrics of a page: their labels, and the values of each."""

OF_PROMETHEUS = {"job", "instance", "namespace"}
"""Labels that Prometheus adds when it reads a page; so is the metric `up`."""
CLOSED = {
    "status": set(Status.__members__),
    "code": {code.name for code in grpc.StatusCode},
    "outcome": {"written", "dropped", "failed"},
}
"""Labels whose values are known without having been seen."""


def alert_groups() -> Any:
    return yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]


def expressions() -> Iterator[tuple[str, str, str]]:
    """Each PromQL expression: where it stands, itself, and the text beside it that names labels."""
    for rule in (rule for group in alert_groups() for rule in group["rules"]):
        yield rule["alert"], rule["expr"], json.dumps(rule["annotations"])
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], here(target["expr"]), target["legendFormat"]
    keda = yaml.safe_load((DEPLOY / "kubernetes/components/keda/scaled-object.yaml").read_text())
    yield "KEDA", keda["spec"]["triggers"][0]["metadata"]["query"], ""
    autoscaler = yaml.safe_load((DEPLOY / "kubernetes/base/autoscaler.yaml").read_text())
    yield "autoscaler", autoscaler["spec"]["metrics"][0]["pods"]["metric"]["name"], ""


def here(expression: str) -> str:
    """An expression of a panel as Grafana sends it, with every replica chosen."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")


EXPRESSIONS = list(expressions())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """What a server exports that has scored, failed, batched, cached, recorded and pushed back."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "tokens").write_text("tests: some-token\n")
    lengths_scorer = {"type": f"{lengths.__file__}:Lengths", "name": "lengths"}
    config = {
        "scorers": [broken("raises"), lengths_scorer, {"type": "length", "name": "short", "max": 3}],
        "workers": 1,
        "cache": True,
        "records": {"path": str(folder / "records.jsonl")},
        "metrics": {"listen": "127.0.0.1:0"},
        "tokens_file": str(folder / "tokens"),
        "quotas": {"tests": {"calls_per_minute": 4}},
    }
    (folder / "reward.yaml").write_text(json.dumps(config))
    with served_by_cli("--config", str(folder / "reward.yaml"), "--listen", f"unix:{folder}/socket") as server:
        with RewardClient(server.endpoint, token="some-token") as client:
            for completions in (["a", "bad"], ["a", "bc"], ["a"]):
                client.score(make_group(completions), timeout_s=20)
            client.score(make_group(["a"], scorers=("short",)), timeout_s=20)
            with pytest.raises(RewardServerError):
                client.score(make_group(["a"]), timeout_s=2)  # the quota is used up
        return metrics_of(server.page().text)


def metrics_of(text: str) -> Exported:
    found: Exported = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The metrics that an expression reads, each with its label matchers."""
    for name, matchers in re.findall(r"\b((?:reward_server|process)_\w+)(?:\{([^}]*)\})?", expression):
        yield name, dict(re.findall(r'(\w+)\s*[!=~]+\s*"([^"]*)"', matchers))


def unknown_metrics(where: str, expression: str, exported: Exported) -> Iterator[str]:
    """What an expression reads that no server exports: metrics, labels of theirs, values of labels."""
    for name, matchers in selectors(expression):
        there = exported.get(name, {})
        if name not in exported:
            yield f"{where}: {name}"
        for label, values in matchers.items():
            if label not in {*there, *OF_PROMETHEUS}:
                yield f"{where}: {name}{{{label}}}"
            elif label not in OF_PROMETHEUS and (never := set(values.split("|")) - CLOSED.get(label, there[label])):
                yield f"{where}: {name}{{{label}}} is never {never}"


def unknown_labels(where: str, expression: str, beside: str, exported: Exported) -> Iterator[str]:
    """Labels that an expression groups by, or that the text beside it shows, and that it does not have."""
    there = OF_PROMETHEUS.union(*(exported.get(name, ()) for name, _ in selectors(expression)))
    grouped = {label.strip() for part in re.findall(r"\bby \(([^)]*)\)", expression) for label in part.split(",")}
    shown = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", beside))
    yield from (f"{where}: {label}" for label in (grouped - there) | (shown - (grouped or there)))


def test_each_metric_and_label_that_is_asked_for_is_exported(exported: Exported) -> None:
    assert len(EXPRESSIONS) > 25
    assert [problem for where, text, _ in EXPRESSIONS for problem in unknown_metrics(where, text, exported)] == []


def test_each_label_that_is_grouped_by_or_shown_is_exported(exported: Exported) -> None:
    assert [problem for expression in EXPRESSIONS for problem in unknown_labels(*expression, exported)] == []


@pytest.mark.parametrize(
    ("expression", "beside", "says"),
    [
        ("reward_server_call_total", "", "x: reward_server_call_total"),
        ('reward_server_scores_total{state="OK"}', "", "x: reward_server_scores_total{state}"),
        (
            'reward_server_scores_total{status=~"OK|LATE"}',
            "",
            "x: reward_server_scores_total{status} is never {'LATE'}",
        ),
        ("sum by (replica) (reward_server_scores_total)", "", "x: replica"),
        ("sum by (scorer) (reward_server_scores_total)", "{{ $labels.status }}", "x: status"),
    ],
)
def test_what_no_server_exports_is_found(expression: str, beside: str, says: str, exported: Exported) -> None:
    found = [*unknown_metrics("x", expression, exported), *unknown_labels("x", expression, beside, exported)]
    assert found == [says]


def test_alerts_fire_when_they_should_and_only_then() -> None:
    run_promtool("check", "rules", str(MONITORING / "alerts.yaml"))
    run_promtool("test", "rules", str(MONITORING / "alerts.test.yaml"))


def test_every_expression_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"expression:{index}", "expr": text} for index, (_, text, _) in enumerate(EXPRESSIONS)]
    (path := tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    run_promtool("check", "rules", str(path))


def run_promtool(*arguments: str) -> None:
    command = [tool("promtool", PROMTOOL), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_operators_rule_has_the_same_alerts() -> None:
    rule = yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())
    assert rule["spec"]["groups"] == alert_groups(), "copy the groups of alerts.yaml to prometheus-rule.yaml"


def test_panels_of_the_dashboard_do_not_overlap_and_have_their_own_ids() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
