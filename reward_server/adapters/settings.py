"""The settings of an adapter: from a trainer's keyword arguments, or else from environment variables.

Owns their names, forms and defaults, and the errors about them. Opens nothing.

    settings = Settings.read({"endpoint": "rewards:50051", "scorers": "math,length"})
    REWARD_ENDPOINT=rewards:50051 REWARD_SCORERS=math,length      the same for Settings.read({})

A name is the same in both, with REWARD_ before it and in capitals in the environment. A keyword argument wins. Lists
are written `a,b` and mappings `a=1,b=2`, or as lists and mappings where a trainer has these.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from reward_server.client import ClientTLS
from reward_server.errors import ConfigError

_PREFIX = "REWARD_"
# Variables of other parts that begin like ours.
_OTHERS = frozenset({"REWARD_TOKEN"})


def _text(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError("must be text")


def _number(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError("must be a number above 0")
    return number


def _count(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value) or int(value) < 1:
        raise ValueError("must be a whole number above 0")
    return int(value)


def _switch(value: Any) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in known:
        raise ValueError("must be true or false")
    return known[str(value).lower()]


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else list(value)
    names = tuple(part.strip() for part in map(_text, parts))
    if not names or not all(names):
        raise ValueError("must be names, as a list or as `a,b`")
    return names


def _weights(value: Any) -> tuple[tuple[str, float], ...]:
    weights = tuple((name, float(weight)) for name, weight in _pairs(value))
    if not all(math.isfinite(weight) for _, weight in weights):
        raise ValueError("must be numbers")
    return weights


def _columns(value: Any) -> tuple[tuple[str, str], ...]:
    """`a,column=key` as pairs of a column and the key that it is taken from."""
    if isinstance(value, Mapping):
        return tuple((_text(column), _text(key)) for column, key in value.items())
    pairs = [name.partition("=") for name in _names(value)]
    return tuple((column.strip(), (key or column).strip()) for column, _, key in pairs)


def _pairs(value: Any) -> Sequence[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(_text(name), given) for name, given in value.items()]
    pairs = [part.partition("=") for part in _names(value)]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError("must be a mapping, or `a=1,b=2`")
    return [(name.strip(), given.strip()) for name, _, given in pairs]


def _setting(read: Callable[[Any], Any], text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"read": read, "text": text})


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that an adapter can be told. `None` is unset."""

    endpoint: tuple[str, ...] = _setting(_names, "host:port of the reward server, several as `a:1,b:1`", ())
    token_file: str | None = _setting(_text, "file with the bearer token; REWARD_TOKEN holds the token itself")
    tls: bool = _setting(_switch, "encrypt with the public certificate authorities", False)
    tls_ca_file: str | None = _setting(_text, "encrypt, and trust the certificates of this file")
    tls_cert_file: str | None = _setting(_text, "the client's own certificate")
    tls_key_file: str | None = _setting(_text, "its private key")
    tls_server_name: str | None = _setting(_text, "the name in the server's certificate, if not the endpoint's")
    timeout_s: float = _setting(_number, "seconds until a reward has to be there, with all retries", 300.0)
    connect_timeout_s: float = _setting(_number, "seconds that the first call waits for the server", 60.0)
    scorers: tuple[str, ...] = _setting(_names, "the scorers to run; unset, all of the server", ())
    validation_scorers: tuple[str, ...] = _setting(_names, "the scorers of validation, where that differs", ())
    weights: tuple[tuple[str, float], ...] = _setting(_weights, "weights in place of the server's, `a=1,b=0.5`", ())
    columns: tuple[tuple[str, str], ...] | None = _setting(
        _columns, "which of the trainer's keys are sent as columns, `answer=ground_truth,level`; unset, all"
    )
    run_id: str | None = _setting(
        _text, "the name of the training run, the same in all its processes; unset, the trainer's"
    )
    prompt_key: str | None = _setting(_text, "the key that holds the prompt, where the trainer does not pass it")
    group_key: str | None = _setting(_text, "the key that names a completion's group, new in each step")
    index_key: str | None = _setting(_text, "the key that holds a completion's position in its group")
    group_size: int | None = _setting(_count, "completions in a group")
    gather_s: float | None = _setting(_number, "seconds that a group waits for its completions; half of timeout_s")
    score_incomplete: bool = _setting(_switch, "score a group that is not complete by then as it is", False)
    strip: tuple[str, ...] = _setting(_names, "special tokens to remove from the text of a completion", ())

    @classmethod
    def read(cls, given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Self:
        """The settings. Raises ConfigError for a name or value that cannot be, and for a missing endpoint."""
        known = {each.name: each for each in dataclasses.fields(cls)}
        _refuse_unknown(given, environment, known)
        values: dict[str, Any] = {}
        for name, each in known.items():
            variable = _PREFIX + name.upper()
            if given.get(name) is not None:
                values[name] = _read(each, given[name], name)
            elif environment.get(variable):
                values[name] = _read(each, environment[variable], variable)
        if not values.get("endpoint"):
            raise ConfigError(
                f"no reward server is named: set {_PREFIX}ENDPOINT=host:port in the environment of the trainer's "
                "workers, or give endpoint as an argument where the trainer passes arguments on"
            )
        return cls(**values)

    @property
    def client_tls(self) -> ClientTLS | None:
        """Raises ConfigError for a certificate without its key."""
        files = self.tls_ca_file, self.tls_cert_file, self.tls_key_file, self.tls_server_name
        return ClientTLS(*files) if self.tls or any(files) else None


def _read(each: dataclasses.Field[Any], value: Any, name: str) -> Any:
    try:
        return each.metadata["read"](value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} ({each.metadata['text']}) is {value!r:.100}: {error}") from error


def _refuse_unknown(given: Mapping[str, Any], environment: Mapping[str, str], known: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise ConfigError(f"there is no setting {name!r} of the reward service{hint}")
    variables = [_PREFIX + name.upper() for name in known]
    for name in environment:
        is_unknown = name.startswith(_PREFIX) and name not in variables and name not in _OTHERS
        if is_unknown and (near := difflib.get_close_matches(name, variables, 1, cutoff=0.85)):
            raise ConfigError(f"the environment has {name}, which is not read: did you mean {near[0]}?")
