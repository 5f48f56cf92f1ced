"""The application builder and the takeover of a configuration, without a cluster."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from ray import serve
from ray.exceptions import GetTimeoutError

from reward_server.config import config_from_mapping
from reward_server.errors import ConfigError
from reward_server.ray.application import app
from reward_server.ray.configuration import config_of, name_of
from reward_server.ray.siblings import Siblings
from reward_server.ray.takeover import State, Takeover
from reward_server.serving.server import RewardServer
from tests.support.pages import blocks_of
from tests.support.waiting import until

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs" / "deploy" / "ray"


def length(most: int) -> dict[str, Any]:
    return {"scorers": [{"type": "length", "name": "length", "max": most}]}


OLD, NEW, BROKEN = length(10), length(20), {"scorers": [{"type": "function", "name": "f", "function": "no.such:f"}]}


# ---------------------------------------------------------------------------------------------------------- the builder


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"confg": "reward.yaml"}, "args.confg.*unknown key, did you mean 'config'"),
        ({"config": "no.yaml"}, "cannot read 'no.yaml'"),
        ({"config": {"scorers": [{"type": "lenth", "name": "a"}]}}, "did you mean 'length'"),
        ({"config": {**OLD, "tls": {"cert": "a", "key": "b"}}}, "tls: Ray Serve's proxy owns the port"),
        ({"config": {"scorers": [{"type": "length", "name": "RewardServer", "max": 1}]}, "split": "true"}, "rename it"),
        ({"split": True}, "a server needs at least one"),
    ],
)
def test_what_cannot_be_deployed_is_refused_before_it_is(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        app(args)


def test_keys_that_ray_takes_the_place_of_are_named_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    config = config_of({**OLD, "listen": "0.0.0.0:50051", "processes": 3, "metrics": {"listen": "127.0.0.1:0"}})
    assert (config.listen, config.processes, config.metrics) == ((), 1, None)
    assert "listen, processes, metrics: Ray Serve has its own" in caplog.text


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def f(completions, **_):\n    return [0.0] * len(completions)\n")
    path = tmp_path / "reward.yaml"
    path.write_text("scorers: [{type: function, name: f, function: rewards.py:f}]\n")
    deployment = app({"config": str(path)})._bound_deployment
    assert config_of(deployment.user_config).scorers[0].base_dir == tmp_path


def test_without_ray_the_way_to_install_it_is_named() -> None:
    code = "import sys; sys.modules['ray'] = None; import reward_server.ray"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].endswith("pip install 'grpo-plugin[ray]'")


def test_the_shipped_files_are_ones_that_the_builder_and_the_server_read() -> None:
    whole, split = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("serve", "split"))
    config_from_mapping(whole["applications"][0]["deployments"][0]["user_config"])
    (application,) = split["applications"]
    app(application["args"])
    scorers = [scorer["name"] for scorer in application["args"]["config"]["scorers"]]
    assert {deployment["name"] for deployment in application["deployments"]} <= {*scorers, "RewardServer"}


def test_the_page_shows_the_shipped_file() -> None:
    (shown,) = [block.text for block in blocks_of(ROOT / "docs" / "ray.md") if block.file == "serve.yaml"]
    assert shown == (CONFIGS / "serve.yaml").read_text()


# --------------------------------------------------------------------------------------------------------- the takeover


class Replicas:
    """Replicas in this process. `mute` is as if Ray had not told of some: they run, and hear nothing."""

    def __init__(self) -> None:
        self.all: list[Takeover] = []
        self.servers: list[RewardServer] = []
        self.mute: set[int] = set()
        self.asked: list[str] = []

    async def start(self, config: Any, leads: bool = False) -> Takeover:
        server = RewardServer(config_of(config))
        await server.load()
        server.open()
        takeover = Takeover(server, name_of(config), self)
        await takeover.join(leads)
        self.servers.append(server)
        self.all.append(takeover)
        return takeover

    def begin(self, config: Any, *numbers: int) -> None:
        """Ray's `reconfigure`, for all replicas or for these; number 0 leads."""
        for number in numbers or range(len(self.all)):
            self.all[number].begin(config, leads=number == 0)

    def digests(self) -> list[str]:
        return [server.info.config_digest for server in self.servers]

    async def ask(self, command: str, name: str) -> list[State]:
        self.asked.append(command)
        await asyncio.sleep(0)
        return [one.obey(command, name) for number, one in enumerate(self.all) if number not in self.mute]

    async def running(self) -> int | None:
        return len(self.all)

    async def close(self) -> None:
        for takeover, server in zip(self.all, self.servers, strict=True):
            await takeover.close()
            await server.shutdown()


@pytest.fixture
async def replicas() -> AsyncIterator[Replicas]:
    started = Replicas()
    for number in range(3):
        await started.start(OLD, leads=number == 0)
    yield started
    await started.close()


async def test_nobody_switches_before_all_have_prepared(replicas: Replicas) -> None:
    before = replicas.digests()
    replicas.begin(NEW, 0, 1)
    await until(lambda: replicas.all[1].obey("tell", "").prepared == name_of(NEW))
    await asyncio.sleep(0.5)  # the leader has asked twice
    assert replicas.digests() == before
    assert "hold" not in replicas.asked
    replicas.begin(NEW, 2)
    await until(lambda: replicas.digests()[0] != before[0])
    assert len(set(replicas.digests())) == 1


async def test_nobody_switches_while_one_hears_nothing(replicas: Replicas) -> None:
    before = replicas.digests()
    replicas.mute = {2}
    replicas.begin(NEW)
    await asyncio.sleep(0.7)
    assert replicas.digests() == before
    replicas.mute = set()
    await until(lambda: replicas.digests()[2] != before[2])


async def test_no_call_begins_between_hold_and_switch(replicas: Replicas) -> None:
    replicas.begin(NEW, 1)
    await until(lambda: replicas.all[1].obey("tell", "").prepared == name_of(NEW))
    replicas.all[1].obey("hold", name_of(NEW))
    call = asyncio.create_task(replicas.all[1].may_begin())
    await asyncio.sleep(0.1)
    assert not call.done()
    replicas.all[1].obey("switch", name_of(NEW))
    await asyncio.wait_for(call, 1)


async def test_what_one_refuses_all_refuse_and_the_next_is_taken(replicas: Replicas) -> None:
    before = replicas.digests()
    replicas.begin(BROKEN)
    await until(lambda: all(one.obey("tell", "").refused == name_of(BROKEN) for one in replicas.all))
    await asyncio.sleep(0.3)
    asked = len(replicas.asked)
    await asyncio.sleep(0.5)
    assert len(replicas.asked) == asked, "the leader goes on"
    assert "hold" not in replicas.asked
    assert replicas.digests() == before
    replicas.begin(NEW)
    await until(lambda: replicas.digests()[0] != before[0])


async def test_a_replica_that_starts_waits_until_the_others_have_switched(replicas: Replicas) -> None:
    starting = asyncio.create_task(replicas.start(NEW))
    await asyncio.sleep(0.5)
    assert not starting.done()
    replicas.begin(NEW)
    await asyncio.wait_for(starting, 5)
    assert len(set(replicas.digests())) == 1


async def test_a_leader_that_died_between_hold_and_switch_has_a_successor_that_ends_it(replicas: Replicas) -> None:
    replicas.begin(NEW, 1, 2)
    await until(lambda: all(one.obey("tell", "").prepared == name_of(NEW) for one in replicas.all[1:]))
    for one in replicas.all[1:]:
        one.obey("hold", name_of(NEW))
    await replicas.all.pop(0).close()
    await replicas.servers.pop(0).shutdown()
    await asyncio.wait_for(replicas.start(NEW, leads=True), 5)
    assert len(set(replicas.digests())) == 1


async def test_a_controller_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(*_: object) -> NoReturn:
        raise GetTimeoutError("the controller restarts")

    monkeypatch.setattr(serve, "status", no_answer)
    monkeypatch.setattr(serve, "get_deployment_handle", no_answer)
    siblings = Siblings("application", "RewardServer")
    assert await siblings.running() is None
    assert [type(answer) for answer in await siblings.ask("tell", "")] == [GetTimeoutError]
