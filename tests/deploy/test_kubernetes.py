"""The Kubernetes manifests: kustomize renders them, the published schemas take them, and they fit our server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from reward_server.addresses import TCP, parse_address
from reward_server.config import ServerConfig, config_from_text
from tests.support.rendering import Manifest, check, one, rendered

KUBERNETES = Path(__file__).parents[2] / "configs" / "deploy" / "kubernetes"
OVERLAYS = [KUBERNETES / "base", *sorted((KUBERNETES / "overlays").iterdir())]
NAMES = [folder.name for folder in OVERLAYS]
IN_BASE = {
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    "Namespace",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Service",
}

every_overlay = pytest.mark.parametrize("folder", OVERLAYS, ids=NAMES)


def pod_of(folder: Path) -> Manifest:
    return one(rendered(folder), "Deployment")["spec"]["template"]["spec"]


def container_of(folder: Path) -> Manifest:
    (container,) = pod_of(folder)["containers"]
    return container


def config_of(folder: Path) -> ServerConfig:
    """The configuration in the ConfigMap that the pod mounts."""
    config_maps = {m["metadata"]["name"]: m for m in rendered(folder) if m["kind"] == "ConfigMap"}
    (mounted,) = (v["configMap"]["name"] for v in pod_of(folder)["volumes"] if "configMap" in v)
    return config_from_text(config_maps[mounted]["data"]["reward.yaml"])


@every_overlay
def test_every_overlay_renders_and_its_resources_are_what_their_schemas_say(folder: Path) -> None:
    for manifest in rendered(folder):
        check(manifest)


@pytest.mark.parametrize(
    ("overlay", "added", "removed"),
    [
        ("gpu", set(), set()),
        ("tls", set(), set()),
        ("keda", {"ScaledObject"}, {"HorizontalPodAutoscaler"}),
        ("monitoring", {"ServiceMonitor", "PrometheusRule"}, set()),
        ("production", {"ScaledObject", "ServiceMonitor", "PrometheusRule"}, {"HorizontalPodAutoscaler"}),
    ],
)
def test_an_overlay_adds_and_removes_what_it_says(overlay: str, added: set[str], removed: set[str]) -> None:
    kinds = {manifest["kind"] for manifest in rendered(KUBERNETES / "overlays" / overlay)}
    assert kinds == (IN_BASE | added) - removed


def test_a_field_that_kubernetes_does_not_know_is_refused() -> None:
    deployment: Any = yaml.safe_load(yaml.safe_dump(one(rendered(KUBERNETES / "base"), "Deployment")))
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 45
    with pytest.raises(Exception, match="terminationGracePeriod"):
        check(deployment)


@every_overlay
def test_a_pod_gets_the_time_that_the_server_takes_to_drain(folder: Path) -> None:
    grace_s = pod_of(folder)["terminationGracePeriodSeconds"]
    assert grace_s >= config_of(folder).drain_grace_s + 10
    assert grace_s >= ServerConfig.model_fields["drain_grace_s"].default + 10  # of a configuration that says nothing


@every_overlay
def test_ports_of_configuration_pod_service_and_policy_are_the_same(folder: Path) -> None:
    config, manifests = config_of(folder), rendered(folder)
    listens = [address for address in map(parse_address, config.listen) if isinstance(address, TCP)]
    assert config.metrics is not None
    served = {"grpc": listens[0].port, "metrics": parse_address(config.metrics.listen).port}  # type: ignore[union-attr]
    assert {port["name"]: port["containerPort"] for port in container_of(folder)["ports"]} == served
    assert {port["name"]: port["port"] for port in one(manifests, "Service")["spec"]["ports"]} == served
    ingress = one(manifests, "NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for rule in ingress for port in rule["ports"]} == set(served)


@every_overlay
def test_the_service_is_headless_and_selects_the_pods(folder: Path) -> None:
    manifests = rendered(folder)
    service, labels = one(manifests, "Service"), one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["clusterIP"] == "None"
    for selector in (
        service["spec"]["selector"],
        one(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        one(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


@every_overlay
def test_probes_ask_in_the_way_in_which_the_server_listens(folder: Path) -> None:
    """Kubernetes' own gRPC probe speaks no TLS."""
    config = config_of(folder)
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container_of(folder)[name]
        assert ("grpc" in probe) == (config.tls is None)
        if config.tls is None:
            assert f"0.0.0.0:{probe['grpc']['port']}" in config.listen
        else:
            assert probe["exec"]["command"][:3] == ["reward-server", "health", "--endpoint"]
            assert probe["exec"]["command"][3] in config.listen


@every_overlay
def test_a_pod_meets_the_restricted_standard_and_writes_only_to_its_volumes(folder: Path) -> None:
    pod, container = pod_of(folder), container_of(folder)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("overlay", ["tls", "production"])
def test_secrets_are_mounted_so_that_they_can_change_and_the_configuration_reads_them_there(overlay: str) -> None:
    folder = KUBERNETES / "overlays" / overlay
    config, mounts = config_of(folder), container_of(folder)["volumeMounts"]
    assert not any("subPath" in mount for mount in mounts)  # which never changes
    where = {mount["name"]: mount["mountPath"] for mount in mounts}
    assert config.tls is not None
    assert (str(config.tls.cert), str(config.tls.key)) == (f"{where['tls']}/tls.crt", f"{where['tls']}/tls.key")
    assert str(config.tokens_file) == f"{where['tokens']}/tokens"
    assert not config.allow_insecure


def test_the_configuration_with_tls_has_the_scorers_of_the_one_without() -> None:
    assert config_of(KUBERNETES / "overlays" / "tls").scorers == config_of(KUBERNETES / "base").scorers


def test_a_gpu_is_asked_for_and_the_image_is_the_one_with_cuda() -> None:
    container = container_of(KUBERNETES / "overlays" / "gpu")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"] == "reward-server:0.1.0-cuda"
