"""A server as a child process: ready when `launch_server` returns, explained when it cannot be, gone afterwards."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reward_server.client import RewardClient
from reward_server.errors import ConfigError, ScorerLoadError, UnavailableError
from reward_server.launch import launch_server
from tests.support.builders import make_group

FILE = Path(__file__).parents[2] / "support" / "misbehaving.py"
LENGTH = {"type": "length", "name": "short", "max": 3}


def function(tmp_path: Path, source: str) -> dict[str, Any]:
    (tmp_path / "f.py").write_text(source)
    return {"scorers": [{"type": "function", "name": "f", "function": f"{tmp_path}/f.py:f"}], "workers": 1}


def score(endpoint: str, *completions: str) -> list[float | None]:
    with RewardClient(endpoint, timeout_s=20) as client:
        return [score.value for score in client.score(make_group(completions)).scorers[0].scores]


def test_a_mapping_is_served_on_a_private_socket_that_is_gone_afterwards() -> None:
    with launch_server({"scorers": [LENGTH]}) as server:
        socket = Path(server.endpoint.removeprefix("unix:"))
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert score(server.endpoint, "ab", "abcd") == [1.0, 0.0]
        assert server.poll() is None
    assert server.poll() == 0
    assert not socket.parent.exists()


def test_a_file_is_served_and_paths_in_it_are_looked_up_beside_it(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def f(completions, **_):\n    return [7.0] * len(completions)\n")
    config = tmp_path / "reward.yaml"
    config.write_text("scorers: [{type: function, name: f, function: 'f.py:f'}]\nworkers: 1\n")
    with launch_server(config) as server:
        assert score(server.endpoint, "a") == [7.0]


def test_the_digest_is_known_without_a_call() -> None:
    with launch_server({"scorers": [LENGTH]}) as server, RewardClient(server.endpoint) as client:
        assert server.config_digest == client.info().config_digest


def test_a_port_is_free_if_it_is_0() -> None:
    with launch_server({"scorers": [LENGTH]}, listen="127.0.0.1:0") as server:
        assert int(server.endpoint.removeprefix("127.0.0.1:")) > 0
        assert score(server.endpoint, "a") == [1.0]


def test_a_temporary_folder_with_a_long_name_does_not_break_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with launch_server({"scorers": [LENGTH]}) as server:
        assert score(server.endpoint, "a") == [1.0]


def test_code_of_this_process_is_importable_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("def f(completions, **_):\n    return [3.0] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with launch_server({"scorers": [{"type": "function", "name": "f", "function": "only_here:f"}]}) as server:
        assert score(server.endpoint, "a") == [3.0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scorers": []}, "scorers: a server needs at least one"),
        ({"scorers": [LENGTH], "wrokers": 1}, "wrokers = 1: unknown key, did you mean 'workers'?"),
        ("/no/such.yaml", "there is no configuration file /no/such.yaml"),
        ({"scorers": [LENGTH], "listen": {1, 2}}, "holds a value that YAML cannot hold"),
    ],
)
def test_a_bad_configuration_is_raised_with_the_childs_message(config: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launch_server(config)
    assert message in str(caught.value)


def test_code_that_does_not_import_is_raised_with_the_users_traceback(tmp_path: Path) -> None:
    with pytest.raises(ScorerLoadError, match=r'(?s)f\.py", line 1.*ZeroDivisionError'):
        launch_server(function(tmp_path, "1 / 0\n"))


def test_a_time_out_names_what_was_waited_for_and_leaves_nobody(tmp_path: Path) -> None:
    config = function(tmp_path, "import time\ntime.sleep(600)")
    started: list[subprocess.Popen[bytes]] = []
    with pytest.raises(UnavailableError, match=r"not ready within 2 s: still loading the scorers of its configuration"):
        launch_server(config, timeout_s=2, on_spawn=started.append)
    assert not Path(f"/proc/{started[0].pid}").exists()


def test_output_goes_to_the_log_file(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    source = "def f(completions, **_):\n    print('said by user code')\n    raise ValueError('no')\n"
    with launch_server(function(tmp_path, source), log_path=log) as server:
        assert score(server.endpoint, "a") == [None]
    text = log.read_text()
    assert "said by user code" in text
    assert "ValueError: no" in text


def test_user_code_that_prints_while_it_is_imported_does_not_disturb_the_start(tmp_path: Path) -> None:
    source = "print('hello')\nasync def f(completions, **_):\n    print('there')\n    return [1.0] * len(completions)\n"
    with launch_server(function(tmp_path, source), log_path=tmp_path / "log") as server:
        assert score(server.endpoint, "a") == [1.0]


def test_ctrl_c_in_the_terminal_of_the_parent_does_not_reach_the_server() -> None:
    with launch_server({"scorers": [LENGTH]}) as server:
        assert os.getsid(server.pid) != os.getsid(0)
        assert os.getpgid(server.pid) != os.getpgid(0)


def test_stopping_twice_does_no_harm_and_tells_the_exit_code() -> None:
    server = launch_server({"scorers": [LENGTH]})
    assert server.stop() == 0
    assert server.stop() == 0


def test_a_group_that_hangs_does_not_hold_up_the_stop_beyond_the_grace() -> None:
    config = {"scorers": [{"type": "function", "name": "f", "function": f"{FILE}:obeys"}], "workers": 1}
    with launch_server(config) as server, RewardClient(server.endpoint, timeout_s=60) as client:
        pending = client.submit(make_group(["hang"]))
        time.sleep(0.5)
        began = time.monotonic()
        assert server.stop(grace_s=0.5) == 1
        assert time.monotonic() - began < 5
        pending.cancel()


def test_a_program_that_forgets_to_stop_its_server_leaves_none_behind() -> None:
    code = f"from reward_server.launch import launch_server\nprint(launch_server({{'scorers': [{LENGTH!r}]}}).pid)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not Path(f"/proc/{int(run.stdout)}").exists()
    assert run.stderr == ""
