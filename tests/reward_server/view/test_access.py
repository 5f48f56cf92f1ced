"""Who may see the page, and the arguments of `reward-server view`."""

from __future__ import annotations

from pathlib import Path

import pytest

from reward_server.cli.main import main
from reward_server.errors import ConfigError
from reward_server.view.access import check_listen, is_loopback, is_token, read_token


def test_only_this_machine_reaches_a_loopback_address() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "rewards.internal", ""))


def test_an_address_beyond_this_machine_needs_a_token() -> None:
    with pytest.raises(ConfigError, match=r"--listen 0\.0\.0\.0 can be reached from other machines.*--token-file"):
        check_listen("0.0.0.0", None)
    check_listen("0.0.0.0", "t" * 16)
    check_listen("127.0.0.1", None)


def test_a_token_is_the_first_line_of_its_file_and_long_enough(tmp_path: Path) -> None:
    (path := tmp_path / "token").write_text("0123456789abcdef\nand a note\n")
    assert read_token(path) == "0123456789abcdef"
    path.write_text("short")
    with pytest.raises(ConfigError, match="needs at least 16 characters"):
        read_token(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_token(tmp_path / "none")


def test_only_the_token_is_the_token() -> None:
    assert is_token("0123456789abcdef", "0123456789abcdef")
    assert not any(
        is_token(given, "0123456789abcdef") for given in ("", "0123456789abcde", "0123456789abcdeF", "\ud800")
    )


def test_bad_arguments_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records.jsonl").touch()
    for arguments, said in (
        ([str(tmp_path / "nowhere")], "there is no record file or run folder"),
        ([str(tmp_path / "records.jsonl"), "--listen", "0.0.0.0"], "can be reached from other machines"),
        ([str(tmp_path / "records.jsonl"), "--token-file", "none"], "--token-file none"),
    ):
        assert main(["view", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert said in error
        assert error.count("\n") == 1
