"""`reward-server schema`: the JSON Schema of a configuration, for editors and other tools.

Owns the schema's form; names, types, defaults and descriptions come from the pydantic models. The scorers are a union
that `type` discriminates, with each kind's own options.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from reward_server.config import ServerConfig
from reward_server.scorers.base import ScorerOptions
from reward_server.scorers.registry import known_types, scorer_class

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DEFINITIONS = "#/$defs/"
_SCORER = {"$ref": f"{_DEFINITIONS}Scorer"}


def option_models() -> dict[str, type[ScorerOptions]]:
    """The options model of every scorer `type` that is installed, the built-in ones first.

    A kind whose packages are missing has the options that every scorer has.
    """
    return {kind: _options_of(kind) for kind in known_types()}


def config_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a configuration file."""
    models = option_models()
    described: list[type[BaseModel]] = list(dict.fromkeys([ServerConfig, *models.values()]))
    refs, schema = models_json_schema([(model, "validation") for model in described])
    definitions: dict[str, Any] = schema["$defs"]
    for kind, model in models.items():
        definitions[f"scorer_{kind}"] = _kind_schema(kind, _resolved(refs[model, "validation"], definitions))
    definitions["scorer_of_your_own"] = _own_class_schema(definitions["ScorerOptions"])
    definitions["Scorer"] = _union([*(f"scorer_{kind}" for kind in models), "scorer_of_your_own"])
    config = _resolved(refs[ServerConfig, "validation"], definitions)
    whole = {"$schema": _DIALECT, **config, "title": "reward-server configuration", "$defs": definitions}
    return _without_unused(_with_scorer_union(whole))


def _options_of(kind: str) -> type[ScorerOptions]:
    try:
        return scorer_class(kind).Options
    except ImportError:  # a package of an extra that is not installed
        return ScorerOptions


def _resolved(reference: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(definitions[reference["$ref"].removeprefix(_DEFINITIONS)])


def _kind_schema(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A kind's options, with `type` fixed to the kind's name."""
    schema["title"] = kind
    schema["properties"]["type"] = {**schema["properties"]["type"], "const": kind}
    return schema


def _own_class_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A class of the user's own, named as module:attribute or file.py:attribute, whose options are not known."""
    own = copy.deepcopy(dict(schema))
    own["title"] = "module:attribute"
    own["properties"]["type"]["pattern"] = ":"
    own["additionalProperties"] = True
    return own


def _union(names: list[str]) -> dict[str, Any]:
    return {
        "oneOf": [{"$ref": f"{_DEFINITIONS}{name}"} for name in names],
        "required": ["type"],
        "discriminator": {"propertyName": "type"},
    }


def _with_scorer_union(schema: Any) -> Any:
    """The schema with the union of all kinds where a model holds scorers: `scorers`, and the parts of a composite."""
    if isinstance(schema, list):
        return [_with_scorer_union(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema == {"$ref": f"{_DEFINITIONS}ScorerOptions"}:
        return dict(_SCORER)
    return {key: _with_scorer_union(value) for key, value in schema.items()}


def _without_unused(schema: dict[str, Any]) -> dict[str, Any]:
    """Drops the definitions that nothing refers to, such as the models that the kinds are copies of."""
    used: set[str] = set()
    pending = [{key: value for key, value in schema.items() if key != "$defs"}]
    while pending:
        for name in _references(pending.pop()) - used:
            used.add(name)
            pending.append(schema["$defs"][name])
    return {**schema, "$defs": {name: found for name, found in schema["$defs"].items() if name in used}}


def _references(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_references, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"].removeprefix(_DEFINITIONS)} if isinstance(schema.get("$ref"), str) else set()
    return own.union(*map(_references, schema.values()))
