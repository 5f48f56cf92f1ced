"""The settings of adapters: the same names by keyword and in the environment, and one clear error for a wrong one."""

from __future__ import annotations

from typing import Any

import pytest

from reward_server.adapters.settings import Settings
from reward_server.client import ClientTLS
from reward_server.errors import ConfigError

E = {"endpoint": "rewards:50051"}


def test_arguments_and_the_environment_mean_the_same() -> None:
    given = {
        "endpoint": ["a:1", "b:2"],
        "scorers": ["math", "length"],
        "weights": {"math": 1, "length": -0.5},
        "columns": {"answer": "ground_truth", "level": "level"},
        "group_size": 8,
        "timeout_s": 12.5,
        "score_incomplete": True,
    }
    environment = {
        "REWARD_ENDPOINT": "a:1,b:2",
        "REWARD_SCORERS": "math, length",
        "REWARD_WEIGHTS": "math=1,length=-0.5",
        "REWARD_COLUMNS": "answer=ground_truth,level",
        "REWARD_GROUP_SIZE": "8",
        "REWARD_TIMEOUT_S": "12.5",
        "REWARD_SCORE_INCOMPLETE": "true",
        "REWARD_TOKEN": "secret",  # the client reads it
        "REWARD_MODEL": "somebody else's",
    }
    assert Settings.read(given, {}) == Settings.read({}, environment)
    assert Settings.read({"timeout_s": 3}, environment).timeout_s == 3.0  # an argument wins


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        (
            {},
            {},
            "no reward server is named: set REWARD_ENDPOINT=host:port in the environment of",
        ),
        ({**E, "scorer": "a"}, {}, "there is no setting 'scorer' of the reward service, did you mean 'scorers'"),
        ({**E, "xyz": 1}, {}, "there is no setting 'xyz' of the reward service; there are endpoint, token_file"),
        (
            E,
            {"REWARD_ENDPONT": "b:1"},
            "the environment has REWARD_ENDPONT, which is not read: did you mean REWARD_",
        ),
        (E, {"REWARD_TIMEOUT_S": "soon"}, r"REWARD_TIMEOUT_S \(seconds until .*\) is 'soon': could not convert"),
        ({**E, "timeout_s": 0}, {}, "timeout_s .* is 0: must be a number above 0"),
        ({**E, "weights": "a"}, {}, "weights .* is 'a': must be a mapping, or `a=1,b=2`"),
        ({**E, "weights": {"a": float("nan")}}, {}, "must be numbers"),
        ({**E, "group_size": 2.5}, {}, "group_size .* is 2.5: must be a whole number above 0"),
        ({**E, "score_incomplete": "maybe"}, {}, "score_incomplete .* is 'maybe': must be true or false"),
        ({**E, "scorers": "a,,b"}, {}, "scorers .* is 'a,,b': must be"),
        ({**E, "token_file": 5}, {}, "token_file .* is 5: must be text"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any], environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings.read(given, environment)


def test_tls_is_on_by_a_switch_or_a_file() -> None:
    assert Settings.read(E, {}).client_tls is None
    assert Settings.read({**E, "tls": "yes"}, {}).client_tls == ClientTLS()
    assert Settings.read({**E, "tls_ca_file": "ca.pem"}, {}).client_tls == ClientTLS("ca.pem")
    with pytest.raises(ConfigError, match="belong together"):
        _ = Settings.read({**E, "tls_cert_file": "c.pem"}, {}).client_tls
