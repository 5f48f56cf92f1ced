"""Tokens and certificates: who may call, what is said to who may not, and that no token is in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from accelerate import PartialState
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpo_plugin import RemoteGRPOConfig
from grpo_plugin.rewards.connection import connect
from reward_server.cli.main import main
from reward_server.client import AsyncRewardClient, ClientTLS, CohortClient, RewardClient, remote_rewards
from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError, CredentialsError, UnavailableError
from reward_server.launch import ServerProcess, launch_server
from reward_server.serving.security import Security
from reward_server.serving.server import RewardServer
from reward_server.types import Completion, Sample
from tests.support.builders import make_group
from tests.support.certificates import Certificates

LENGTH = {"type": "length", "name": "short", "max": 3}
RIGHT, NEXT, WRONG = "right-secret-1", "next-secret-2", "wrong-secret-3"

CPU: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none"}

Start = Callable[..., ServerProcess]


@pytest.fixture(autouse=True)
def no_token_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


@pytest.fixture
def start(log: Path) -> Iterator[Start]:
    """Starts servers on a port of 127.0.0.1 with these settings; they end with the test."""
    servers: list[ServerProcess] = []

    def launch(**config: Any) -> ServerProcess:
        mapping = {"scorers": [LENGTH], "workers": 1, **config}
        servers.append(launch_server(mapping, listen="127.0.0.1:0", log_path=log, timeout_s=60))
        return servers[-1]

    yield launch
    for server in servers:
        server.stop()


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# the trainers'\n{RIGHT}\n")
    return path


def answer(client: RewardClient) -> Any:
    with client:
        client.connect(5)
        return client.score(make_group(["ab"]), timeout_s=10).scorers[0].scores[0].value


def refusal(make: Callable[[], Any], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        make()
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------------- tokens


def test_a_token_lets_in_by_argument_file_and_environment(
    start: Start, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = start(tokens_file=str(tokens)).endpoint
    assert answer(RewardClient(endpoint, token=RIGHT)) == 1.0
    assert answer(RewardClient(endpoint, token_file=tokens)) == 1.0
    assert [reward.__name__ for reward in remote_rewards(endpoint, token=RIGHT)] == ["short"]
    monkeypatch.setenv("REWARD_TOKEN", RIGHT)
    assert answer(RewardClient(endpoint)) == 1.0


async def test_asyncio_clients_bring_tokens_too(start: Start, tokens: Path) -> None:
    endpoint = start(tokens_file=str(tokens)).endpoint
    async with AsyncRewardClient(endpoint, token=RIGHT) as client:
        assert (await client.info()).scorers
        assert (await client.score(make_group(["ab"]))).scorers[0].scores[0].value == 1.0
    async with AsyncRewardClient(endpoint, token=WRONG) as client:
        with pytest.raises(CredentialsError):
            await client.score(make_group(["ab"]))


def test_without_the_right_token_every_call_is_refused_at_once_and_no_text_holds_one(
    start: Start, tokens: Path, log: Path
) -> None:
    server = start(tokens_file=str(tokens))
    texts = [refusal(lambda: answer(RewardClient(server.endpoint)), CredentialsError)]
    assert "asks for a token" in texts[0]
    for token in (WRONG, RIGHT[:-1], RIGHT + "x"):
        client = RewardClient(server.endpoint, token=token)
        texts.append(refusal(lambda client=client: client.connect(5), CredentialsError))
        texts.append(refusal(lambda client=client: client.score(make_group(["a"])), CredentialsError))
        texts.append(repr(client) + repr(vars(client)))
        assert client.counts.retries == 0
        client.close()
    server.stop()
    texts.append(log.read_text())
    assert not any("secret" in text for text in texts)


def test_tokens_rotate_without_a_restart_on_both_sides(start: Start, tokens: Path, tmp_path: Path, log: Path) -> None:
    endpoint = start(tokens_file=str(tokens)).endpoint
    own = tmp_path / "own"
    own.write_text(RIGHT)
    with RewardClient(endpoint, token_file=own) as client:
        client.connect(5)
        tokens.write_text(f"{RIGHT}\n{NEXT}\n")
        client.info(5)
        own.write_text(NEXT)
        client.info(5)
        tokens.write_text(f"{NEXT}\n")
        client.info(5)
        own.write_text(RIGHT)
        refusal(lambda: client.info(5), CredentialsError)
        tokens.write_text("")  # as when a write has only begun
        own.write_text(NEXT)
        client.info(5)
    assert "the old tokens stay accepted: tokens_file: " in log.read_text()
    assert "secret" not in log.read_text()


def test_health_stays_open(start: Start, tokens: Path) -> None:
    with grpc.insecure_channel(start(tokens_file=str(tokens)).endpoint) as channel:
        request = health_pb2.HealthCheckRequest(service="")
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("content", "says"), [(None, "No such file"), ("# none\n", "holds no tokens"), ("ok\nmy secret\n", "line 2")]
)
def test_a_tokens_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
    config = config_from_mapping({"scorers": [LENGTH], "tokens_file": "tokens"}, base_dir=tmp_path)
    text = refusal(lambda: Security(config), ConfigError)
    assert text.startswith("tokens_file: ")
    assert str(path) in text
    assert says in text
    assert "secret" not in text


def test_a_client_says_what_is_wrong_with_its_token(tmp_path: Path) -> None:
    text = refusal(lambda: RewardClient("x:1", token="my secret"), ConfigError)
    assert "token: a token is printable ASCII" in text
    assert "secret" not in text
    assert "No such file" in refusal(lambda: RewardClient("x:1", token_file=tmp_path / "none"), ConfigError)
    assert "exclude each other" in refusal(lambda: RewardClient("x:1", token="a", token_file="b"), ConfigError)


# ----------------------------------------------------------------------------------------------------- where to listen


@pytest.mark.parametrize(
    ("credentials", "lacks"),
    [
        ((), "callers are neither authenticated nor encrypted: set tls, and tokens_file or tls.client_ca"),
        (("tokens",), "tokens would travel unencrypted: set tls"),
        (("tls",), "anybody there may call: set tokens_file or tls.client_ca"),
        (("tls", "tokens"), None),
        (("mutual",), None),
    ],
)
def test_beyond_loopback_calls_must_be_encrypted_and_authenticated(
    credentials: tuple[str, ...], lacks: str | None, tokens: Path, certificates: Certificates
) -> None:
    tls = certificates.server("good")
    settings: dict[str, dict[str, Any]] = {
        "tokens": {"tokens_file": str(tokens)},
        "tls": {"tls": tls},
        "mutual": {"tls": {**tls, "client_ca": certificates.path("ca.pem")}},
    }
    mapping: dict[str, Any] = {"scorers": [LENGTH], "listen": "0.0.0.0:0"}
    for name in credentials:
        mapping |= settings[name]
    if lacks is None:
        RewardServer(config_from_mapping(mapping))
    else:
        assert lacks in refusal(lambda: RewardServer(config_from_mapping(mapping)), ConfigError)
    RewardServer(config_from_mapping({**mapping, "allow_insecure": True}))


# -------------------------------------------------------------------------------------------------------- certificates


def test_a_right_certificate_and_token_score_over_tls(start: Start, tokens: Path, certificates: Certificates) -> None:
    endpoint = start(tls=certificates.server("good"), tokens_file=str(tokens)).endpoint
    tls = ClientTLS(ca_file=certificates.path("ca.pem"))
    assert answer(RewardClient(endpoint, token=RIGHT, tls=tls)) == 1.0
    refusal(lambda: answer(RewardClient(endpoint, token=WRONG, tls=tls)), CredentialsError)


async def test_asyncio_clients_speak_tls_too(start: Start, certificates: Certificates) -> None:
    endpoint = start(tls=certificates.server("good")).endpoint
    async with AsyncRewardClient(endpoint, tls=ClientTLS(ca_file=certificates.path("ca.pem"))) as client:
        assert (await client.score(make_group(["ab"]))).scorers[0].scores[0].value == 1.0


def test_samples_go_over_tls_to_the_addresses_of_a_name(start: Start, tokens: Path, certificates: Certificates) -> None:
    endpoint = start(tls=certificates.server("good"), tokens_file=str(tokens)).endpoint
    endpoint = endpoint.replace("127.0.0.1", "localhost")  # resolved by the client, and still checked by this name
    tls = ClientTLS(ca_file=certificates.path("ca.pem"))
    with CohortClient(endpoint, token=RIGHT, tls=tls) as client:
        assert client.score(Sample("p", Completion("ab"))).scores.rewards() == [1.0]
    with CohortClient(endpoint, token=WRONG, tls=tls) as client:
        refusal(lambda: client.score(Sample("p", Completion("ab"))), CredentialsError)


@pytest.mark.parametrize(
    ("server", "ca", "says"),
    [
        ("good", "other.pem", "is not signed by the CA that this client trusts"),
        ("expired", "ca.pem", "the server's certificate has expired"),
        ("elsewhere", "ca.pem", "is for another host name than the endpoint's"),
    ],
)
def test_connect_names_what_is_wrong_with_a_certificate_long_before_its_deadline(
    start: Start, certificates: Certificates, server: str, ca: str, says: str
) -> None:
    endpoint = start(tls=certificates.server(server)).endpoint
    with RewardClient(endpoint, tls=ClientTLS(ca_file=certificates.path(ca))) as client:
        began = time.monotonic()
        assert says in refusal(lambda: client.connect(60), UnavailableError)
        assert time.monotonic() - began < 10


def test_a_server_of_another_name_is_accepted_by_that_name(start: Start, certificates: Certificates) -> None:
    endpoint = start(tls=certificates.server("elsewhere")).endpoint
    tls = ClientTLS(ca_file=certificates.path("ca.pem"), server_name="elsewhere")
    assert answer(RewardClient(endpoint, tls=tls)) == 1.0


def test_plain_text_where_tls_is_spoken_and_the_reverse_are_named(start: Start, certificates: Certificates) -> None:
    encrypted, plain = start(tls=certificates.server("good")).endpoint, start().endpoint
    with RewardClient(encrypted) as client:
        assert "does the server speak TLS" in refusal(lambda: client.connect(1), UnavailableError)
    with RewardClient(plain, tls=ClientTLS(ca_file=certificates.path("ca.pem"))) as client:
        assert "the server does not speak TLS" in refusal(lambda: client.connect(60), UnavailableError)


def test_mutual_tls_refuses_a_client_without_a_certificate_of_the_ca(start: Start, certificates: Certificates) -> None:
    ca = certificates.path("ca.pem")
    endpoint = start(tls={**certificates.server("good"), "client_ca": ca}).endpoint
    own = certificates.server("elsewhere")
    assert answer(RewardClient(endpoint, tls=ClientTLS(ca, own["cert"], own["key"]))) == 1.0
    with RewardClient(endpoint, tls=ClientTLS(ca)) as client:
        assert "does the server ask for a client certificate?" in refusal(lambda: client.connect(1), UnavailableError)
    stranger = ClientTLS(ca, certificates.path("other.pem"), certificates.path("other.key"))
    with RewardClient(endpoint, tls=stranger) as client:
        assert "does the server trust the CA of" in refusal(lambda: client.connect(1), UnavailableError)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cert": "missing.pem"}, ["tls.cert: cannot read ", "missing.pem", "No such file"]),
        ({"cert": "good.key"}, ["tls.cert: ", "good.key holds no PEM certificate"]),
        ({"key": "ca.key"}, ["tls.key: ", "ca.key is not the unencrypted PEM private key of ", "good.pem"]),
        ({"client_ca": "good.key"}, ["tls.client_ca: ", "good.key holds no PEM certificate"]),
    ],
)
def test_files_of_a_server_that_cannot_be_used_are_named_by_field(
    certificates: Certificates, change: dict[str, str], says: list[str]
) -> None:
    tls = {"cert": "good.pem", "key": "good.key", **change}
    config = config_from_mapping({"scorers": [LENGTH], "tls": tls}, base_dir=Path(certificates.path("")))
    text = refusal(lambda: Security(config), ConfigError)
    assert all(part in text for part in says), text


def test_files_of_a_client_that_cannot_be_used_are_named(certificates: Certificates) -> None:
    key = certificates.path("good.key")
    for tls in (ClientTLS("missing.pem"), ClientTLS(key), ClientTLS(None, key, key)):
        with RewardClient("127.0.0.1:1", tls=tls) as client:
            assert "pem" in refusal(lambda client=client: client.connect(5), ConfigError).lower()
    assert "give cert_file and key_file, or neither" in refusal(lambda: ClientTLS(cert_file=key), ConfigError)
    assert "leave tls out" in refusal(lambda: RewardClient("unix:x", tls=ClientTLS()), ConfigError)
    assert "server_name" in refusal(lambda: RewardClient(["127.0.0.1:1", "127.0.0.1:2"], tls=ClientTLS()), ConfigError)


# ----------------------------------------------------------------------------------------------------------- the shell


def test_check_says_that_a_token_file_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "reward.yaml"
    path.write_text("scorers: [{type: length, name: short, max: 3}]\ntokens_file: none\n")
    assert main(["check", "--config", str(path)]) == 1
    assert capsys.readouterr().err.startswith("error: tokens_file: cannot read ")


def test_score_brings_token_and_ca(
    start: Start, tokens: Path, certificates: Certificates, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = start(tls=certificates.server("good"), tokens_file=str(tokens)).endpoint
    command = ["score", "--endpoint", endpoint, "--tls-ca", certificates.path("ca.pem"), "--completion", "ab"]
    assert main([*command, "--token-file", str(tokens)]) == 0
    assert main(command) == 1
    assert "asks for a token" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- the trainer


def test_a_trainer_brings_its_token_certificate_and_ca(
    start: Start, tokens: Path, certificates: Certificates, tmp_path: Path
) -> None:
    ca, own = certificates.path("ca.pem"), certificates.server("good")
    endpoint = start(tls={**own, "client_ca": ca}, tokens_file=str(tokens)).endpoint
    where: dict[str, Any] = {"reward_endpoint": endpoint, "reward_token_file": str(tokens), "reward_tls_ca": ca}
    files = {"reward_tls_cert": own["cert"], "reward_tls_key": own["key"]}
    args = RemoteGRPOConfig(str(tmp_path), **where, **files, **CPU)
    connection = connect(args, PartialState())
    assert connection is not None
    assert [scorer.name for scorer in connection.scorers] == ["short"]
    connection.close()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"reward_tls_ca": "ca", "reward_config": "c.yaml"}, "reward_tls_ca: the embedded service"),
        ({"reward_tls_cert": "c", "reward_endpoint": "x:1"}, "reward_tls_cert and reward_tls_key go together"),
    ],
)
def test_a_trainer_refuses_tls_fields_that_do_nothing(tmp_path: Path, fields: dict[str, str], says: str) -> None:
    assert says in refusal(lambda: RemoteGRPOConfig(str(tmp_path), **fields, **CPU), ValueError)
