"""Certificates and tokens are replaced while the server serves, in the way in which Kubernetes replaces a secret."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reward_server.client import ClientTLS, RewardClient
from reward_server.config import TLSConfig
from reward_server.errors import CredentialsError, UnavailableError
from reward_server.launch import ServerProcess
from reward_server.serving.certificates import Certificates as Followed
from tests.support.builders import make_group
from tests.support.certificates import Certificates

LENGTH = {"type": "length", "name": "short", "max": 3}


class Secret:
    """A mounted secret: each file is a link through `..data`, which is turned to a new folder at a change."""

    def __init__(self, folder: Path, **files: str):
        self._folder, self._version = folder, 0
        self.replace(**files)
        for name in files:
            (folder / name).symlink_to(f"..data/{name}")

    def replace(self, **files: str) -> None:
        self._version += 1
        data = self._folder / f"..{self._version}"
        data.mkdir(parents=True)
        for name, content in files.items():
            (data / name).write_text(content)
        (link := self._folder / "..new").symlink_to(data.name)
        os.replace(link, self._folder / "..data")

    def path(self, name: str) -> str:
        return str(self._folder / name)


def pair(certificates: Certificates, name: str) -> dict[str, str]:
    tls = certificates.server(name)
    return {"cert": Path(tls["cert"]).read_text(), "key": Path(tls["key"]).read_text()}


def asks(endpoint: str, certificates: Certificates, name: str, token: str) -> None:
    """Opens a new connection to a server of that name; raises if its certificate or our token is refused."""
    tls = ClientTLS(ca_file=certificates.path("ca.pem"), server_name=name)
    with RewardClient(endpoint, token=token, tls=tls) as client:
        client.connect(5)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_secret_that_is_replaced_counts_for_new_connections_and_open_ones_go_on(
    serve: Callable[..., ServerProcess], certificates: Certificates, tmp_path: Path, processes: int
) -> None:
    tls = Secret(tmp_path / "tls", **pair(certificates, "elsewhere"))
    tokens = Secret(tmp_path / "tokens", tokens="first-token\n")
    paths = {"tls": {"cert": tls.path("cert"), "key": tls.path("key")}, "tokens_file": tokens.path("tokens")}
    endpoint = serve(LENGTH, listen="127.0.0.1:0", processes=processes, **paths).endpoint
    before = ClientTLS(ca_file=certificates.path("ca.pem"), server_name="elsewhere")
    with RewardClient(endpoint, token="second-token", tls=before) as client:
        with pytest.raises(CredentialsError):
            client.connect(5)
        tls.replace(**pair(certificates, "good"))
        tokens.replace(tokens="second-token\n")
        asks(endpoint, certificates, "localhost", "second-token")
        assert client.score(make_group(["ab"]), timeout_s=10).scorers[0].scores[0].value == 1.0
    with pytest.raises(UnavailableError, match="another host name"):
        asks(endpoint, certificates, "elsewhere", "second-token")
    with pytest.raises(CredentialsError):
        asks(endpoint, certificates, "localhost", "first-token")


def test_a_certificate_that_is_half_replaced_is_not_taken(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file, name in (("cert", "good.pem"), ("key", "good.key")):
        shutil.copy(certificates.path(name), tmp_path / file)
    followed = Followed(TLSConfig(cert=tmp_path / "cert", key=tmp_path / "key", client_ca=None))
    assert followed.changed() is None
    shutil.copy(certificates.path("elsewhere.pem"), tmp_path / "cert")
    assert followed.changed() is None
    assert "the old certificate stays in use: tls.key: " in caplog.text
    shutil.copy(certificates.path("elsewhere.key"), tmp_path / "key")
    assert followed.changed() is not None
    assert followed.changed() is None
