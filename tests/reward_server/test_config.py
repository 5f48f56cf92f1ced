"""A configuration is read whole or refused by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from reward_server.config import ServerConfig, config_from_mapping, digest_of, load_config
from reward_server.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs" / "reward"
LENGTH = {"type": "length", "name": "short", "max": 10}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "reward.yaml"
    path.write_text(text)
    return path


def refusal(mapping: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(mapping)
    return str(caught.value)


def digest(config: ServerConfig, version: str = "1") -> str:
    return digest_of(config.scorers, [version] * len(config.scorers))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_parses(path: Path) -> None:
    assert load_config(path).scorers


def test_defaults_are_loopback_and_bounded() -> None:
    config = config_from_mapping({"scorers": [LENGTH]})
    assert config.listen == ("127.0.0.1:50051",)
    assert 1 <= config.workers <= 4
    assert config.limits.max_group_bytes == 64 << 20
    assert config.limits.max_completions == 4096


def test_one_address_needs_no_list() -> None:
    assert config_from_mapping({"scorers": [LENGTH], "listen": "unix:x"}).listen == ("unix:x",)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"there is no configuration file /no/such\.yaml"):
        load_config("/no/such.yaml")


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path, "scorers:\n  - type: length\n    name: [unclosed\nworkers: 1\n")
    with pytest.raises(ConfigError, match=rf"{path}, line 4: not YAML"):
        load_config(path)


def test_an_unknown_key_is_named_with_the_nearest_one() -> None:
    message = refusal({"scorers": [LENGTH], "wrokers": 3})
    assert "wrokers = 3: unknown key, did you mean 'workers'?" in message


def test_an_unknown_scorer_option_names_the_scorer_by_place() -> None:
    message = refusal({"scorers": [{**LENGTH, "wieght": 3}]})
    assert "scorers[0].wieght = 3: unknown key, did you mean 'weight'?" in message


def test_an_unknown_type_is_named() -> None:
    assert "scorers[0].type: there is no scorer type 'lenth', did you mean 'length'?" in refusal(
        {"scorers": [{"type": "lenth", "name": "x"}]}
    )


def test_a_wrong_value_names_field_and_value() -> None:
    message = refusal({"scorers": [LENGTH], "workers": 0})
    assert "workers: " in message
    assert "0 is not" in message


def test_a_nested_field_is_named_by_its_path() -> None:
    assert "limits.max_completions: " in refusal({"scorers": [LENGTH], "limits": {"max_completions": "many"}})
    assert "limits.max_bytes = 1: unknown key" in refusal({"scorers": [LENGTH], "limits": {"max_bytes": 1}})


def test_everything_wrong_is_told_at_once() -> None:
    message = refusal({"scorers": [{"type": "lenth", "name": "x"}, {**LENGTH, "maks": 3}], "workers": 0})
    assert all(part in message for part in ("scorers[0].type", "scorers[1].maks", "workers:"))


@pytest.mark.parametrize("scorers", [None, []])
def test_no_scorers_are_refused(scorers: Any) -> None:
    assert "scorers: a server needs at least one" in refusal({"scorers": scorers})


def test_two_scorers_of_one_name_are_refused() -> None:
    assert "scorers[1].name: 'short' is also the name of scorers[0]" in refusal({"scorers": [LENGTH, LENGTH]})


@pytest.mark.parametrize("mapping", [None, [], "text", 3])
def test_what_is_no_mapping_is_refused(mapping: Any) -> None:
    assert "must hold a mapping with the key `scorers`" in refusal(mapping)


def test_scorers_that_are_no_list_are_refused() -> None:
    assert "scorers must be a list of mappings" in refusal({"scorers": LENGTH})


def test_the_digest_is_that_of_the_scorers_and_their_versions_only() -> None:
    plain = config_from_mapping({"scorers": [LENGTH]})
    assert digest(plain) == digest(config_from_mapping({"scorers": [LENGTH], "workers": 2, "listen": "unix:x"}))
    assert digest(plain) != digest(plain, version="2")
    assert digest(plain) != digest(config_from_mapping({"scorers": [{**LENGTH, "max": 11}]}))
    assert digest(plain) != digest(config_from_mapping({"scorers": [{**LENGTH, "weight": 2}]}))


def test_the_digest_does_not_depend_on_the_folder_nor_on_defaults_being_written(tmp_path: Path) -> None:
    here = load_config(written(tmp_path, yaml.safe_dump({"scorers": [{**LENGTH, "min": 0, "weight": 1.0}]})))
    assert digest(here) == digest(config_from_mapping({"scorers": [LENGTH]}))
