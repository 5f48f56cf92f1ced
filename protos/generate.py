"""Writes the stubs of the wire, `reward_server/v1/*`, from `reward.proto`: `make protos`.

Owns which generator makes them and what is taken out of them, so that they load in other people's environments. The
generator is installed under `build/` for this script alone; it need not agree with the installed grpcio and protobuf.

Messages load under the protobuf of their generator and under later ones. So the generator is the newest whose protobuf
is 6.31.1, which is the floor in pyproject.toml. The service's stub asks for the grpcio of its generator, but uses only
what grpcio has had since 1.64; that check is taken out.

    python protos/generate.py           writes the stubs
    python protos/generate.py --check   writes nothing; exits with 1 if a stub is stale
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
STUBS = ROOT / "reward_server/v1"
GENERATOR = "grpcio-tools==1.80.1"

# From the constant that holds the generator's version to the end of the error that it leads to.
_VERSION_CHECK = re.compile(r"^GRPC_GENERATED_VERSION = .*?^    \)\n", re.MULTILINE | re.DOTALL)


def generator() -> Path:
    """The folder in which the generator is installed. Installs it at the first call."""
    folder = ROOT / "build" / GENERATOR.replace("==", "-")
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            command = ["pip", "install", "--quiet", "--no-deps", "--target", f"{made}/generator", GENERATOR]
            subprocess.run([sys.executable, "-m", *command], check=True, timeout=600)
            if not folder.exists():  # or else another process was first
                shutil.move(f"{made}/generator", folder)
    return folder


def generate() -> dict[str, str]:
    """The text of each stub, by its file's name."""
    with tempfile.TemporaryDirectory() as out:
        kinds = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
        command = ["grpc_tools.protoc", "--proto_path=protos", *kinds, "protos/reward_server/v1/reward.proto"]
        environment = {**os.environ, "PYTHONPATH": str(generator())}
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, check=True, timeout=60)
        made = sorted(Path(out, "reward_server/v1").iterdir())
        return {file.name: without_version_check(file.read_text()) for file in made}


def without_version_check(stub: str) -> str:
    """A service's stub without its check of grpcio's version; messages as they are.

    Raises ValueError if a service's stub has no such check where it is looked for: a new generator writes another.
    """
    if "import grpc\n" not in stub:
        return stub
    rest, found = _VERSION_CHECK.subn("", stub)
    rest = rest.replace("import warnings\n", "")
    if not found or "__version__" in rest:
        raise ValueError(f"{GENERATOR} checks grpcio's version in a way that protos/generate.py does not know")
    return rest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a stub is stale")
    check = parser.parse_args().check
    stubs = generate()
    if not check:
        for name, text in stubs.items():
            (STUBS / name).write_text(text)
    stale = [name for name, text in stubs.items() if (STUBS / name).read_text() != text]
    for name in stale:
        print(f"reward_server/v1/{name} is stale: run `make protos`", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
