"""`reward-server schema`: what it describes, and that it accepts and refuses what the server accepts and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from reward_server.cli.main import main
from reward_server.cli.schema import config_schema, option_models
from reward_server.config import ServerConfig, config_from_mapping
from reward_server.errors import ConfigError

ROOT = Path(__file__).parents[3]
SHIPPED = [
    *sorted((ROOT / "configs/reward").glob("*.yaml")),
    *sorted(ROOT.glob("grpo_plugin/cli/quickstart/reward.yaml")),
]
MATH = {"type": "math", "name": "correct"}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = config_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == config_schema()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(validator: Draft202012Validator, path: Path) -> None:
    validator.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "config",
    [
        {"scorers": [{**MATH, "wieght": 2.0}]},
        {"scorers": [{"type": "mathematics", "name": "correct"}]},
        {"scorers": [{"type": "math"}]},
        {"scorers": [{**MATH, "weight": "much"}]},
        {"scorers": [{"type": "composite", "name": "c", "parts": [{**MATH, "pattern": "a regex's option"}]}]},
        {"scorers": [MATH], "port": 50051},
        {"scorers": [MATH], "limits": {"max_completions": 0}},
        {"workers": 2},
    ],
    ids=str,
)
def test_what_the_server_refuses_the_schema_refuses(validator: Draft202012Validator, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        config_from_mapping(config)
    assert not validator.is_valid(config)


@pytest.mark.parametrize(
    "config",
    [
        {"scorers": [MATH], "listen": "127.0.0.1:0", "cache": True},
        {"scorers": [MATH], "listen": ["127.0.0.1:0", "unix:/tmp/s"], "cache": {"max_bytes": 1000}},
        {
            "scorers": [
                {"type": "composite", "name": "c", "parts": [{"type": "composite", "name": "d", "parts": [MATH]}]}
            ]
        },
    ],
    ids=str,
)
def test_what_the_server_accepts_the_schema_accepts(validator: Draft202012Validator, config: dict[str, Any]) -> None:
    config_from_mapping(config)
    validator.validate(config)


def test_a_class_of_ones_own_may_have_any_options(validator: Draft202012Validator) -> None:
    validator.validate({"scorers": [{"type": "my_rewards:Brevity", "name": "brief", "target": 100}]})


@pytest.mark.parametrize("model", [ServerConfig, *option_models().values()], ids=lambda model: model.__name__)
def test_every_option_has_a_description(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_every_definition_is_used_and_every_kind_is_told_from_the_others_by_its_type() -> None:
    schema = config_schema()
    text = json.dumps(schema)
    assert all(f'"#/$defs/{name}"' in text for name in schema["$defs"])
    assert {schema["$defs"][f"scorer_{kind}"]["properties"]["type"]["const"] for kind in option_models()} == set(
        option_models()
    )
