"""What travels arrives as it was, and what cannot travel is refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reward_server import wire
from reward_server.errors import InvalidGroupError
from reward_server.types import (
    Completion,
    Group,
    GroupScores,
    Limits,
    Score,
    ScorerInfo,
    ScorerScores,
    ServerInfo,
    Status,
)
from reward_server.v1 import reward_pb2 as pb
from tests.support.builders import make_group, make_scores

ROOT = Path(__file__).parents[2]

CONVERSATION = [
    {"role": "system", "content": None},
    {"role": "user", "content": [{"type": "text", "text": "naïve 😀 \x00"}]},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5, None]}}}],
    },
    {"role": "tool", "name": "f", "content": "42"},
]
COLUMNS = {
    "nested": [[1], [], [2, [3]]],
    "big": 2**200,
    "unicode": "ß 漢字 😀",
    "null": None,
    "deep": {"a": {"b": [True]}},
}


def there_and_back(group: Group) -> Group:
    request = pb.ScoreGroupRequest.FromString(wire.encode_group(group).SerializeToString())
    return wire.decode_group(request)


@pytest.mark.parametrize("content", ["", "text", "ß 漢字 😀 \x00", "cut off \ud83d", CONVERSATION, []])
def test_a_group_arrives_as_it_was(content: object) -> None:
    group = Group(
        prompt=content,  # type: ignore[arg-type]
        completions=(
            Completion(content, (1, 2, 3)),  # type: ignore[arg-type]
            Completion("b", columns={"seed": 2**80}, prompt="another"),
        ),
        columns=COLUMNS,
        run_id="run",
        step=7,
        group_id="run/7",
        scorers=("a", "b"),
    )
    assert there_and_back(group) == group


@pytest.mark.parametrize(
    ("value", "reason"),
    [({1, 2}, "set"), (float("nan"), "nan"), ([float("inf")], "inf"), (b"bytes", "bytes"), (object(), "object")],
)
def test_a_column_that_cannot_be_json_is_named(value: object, reason: str) -> None:
    with pytest.raises(InvalidGroupError, match=f"column 'odd'.*{reason}.*reward_columns"):
        wire.encode_group(make_group(columns={"fine": 1, "odd": value}))


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.ScoreGroupRequest(prompt=pb.Content(text="p")), "at least one completion"),
        (pb.ScoreGroupRequest(completions=[pb.Completion(content=pb.Content(text="a"))]), "the prompt is missing"),
        (pb.ScoreGroupRequest(prompt=pb.Content(text="p"), completions=[pb.Completion()]), "completion 0 is missing"),
        (pb.ScoreGroupRequest(prompt=pb.Content(json="{"), completions=[pb.Completion()]), "the prompt is not JSON"),
        (pb.ScoreGroupRequest(prompt=pb.Content(json="[1]"), completions=[pb.Completion()]), "list of messages"),
        (
            pb.ScoreGroupRequest(
                prompt=pb.Content(text="p"),
                completions=[pb.Completion(content=pb.Content(text="a"))],
                columns_json="[]",
            ),
            "columns_json must be a JSON object",
        ),
        (
            pb.ScoreGroupRequest(
                prompt=pb.Content(text="p"),
                completions=[pb.Completion(content=pb.Content(text="a"))],
                columns_json='{"x": NaN}',
            ),
            "NaN is not JSON",
        ),
        (pb.ScoreGroupRequest(prompt=pb.Content(json="[" * 100_000), completions=[pb.Completion()]), "not JSON"),
    ],
)
def test_a_request_that_is_no_group_is_refused_by_place(request_: pb.ScoreGroupRequest, reason: str) -> None:
    with pytest.raises(InvalidGroupError, match=reason):
        wire.decode_group(request_)


def test_scores_arrive_as_they_were_and_a_zero_is_not_an_absent_score() -> None:
    scores = GroupScores(
        group_id="g",
        scorers=(
            ScorerScores(
                name="s",
                version="1",
                weight=0.5,
                scores=(
                    Score(Status.OK, 0.0),
                    Score(Status.TIMEOUT, message="after 1 s"),
                    Score(Status.NOT_APPLICABLE),
                ),
                metrics={"m": 1.5},
                extra={"parsed": ["a", None, [1]]},
            ),
        ),
        config_digest="d",
        queued_s=0.25,
        compute_s=1.5,
    )
    response = pb.ScoreGroupResponse.FromString(wire.encode_scores(scores).SerializeToString())
    assert wire.decode_scores(response) == scores


def test_a_number_beside_a_failed_status_is_not_read() -> None:
    response = wire.encode_scores(make_scores([1.0]))
    response.scorers[0].scores[0].status = pb.STATUS_FAILED
    assert wire.decode_scores(response).scorers[0].scores[0].value is None


def test_a_status_that_this_version_does_not_know_is_a_failure() -> None:
    response = wire.encode_scores(make_scores([1.0]))
    response.scorers[0].scores[0].status = 99  # type: ignore[assignment]
    assert wire.decode_scores(response).scorers[0].scores[0].status is Status.FAILED


def test_an_ok_without_a_value_is_invalid() -> None:
    response = wire.encode_scores(make_scores([1.0]))
    response.scorers[0].scores[0].ClearField("value")
    assert wire.decode_scores(response).scorers[0].scores[0].status is Status.INVALID


def test_server_info_arrives_as_it_was() -> None:
    info = ServerInfo(
        wire_version=1,
        server_version="0.1.0",
        config_digest="d",
        scorers=(ScorerInfo("s", "math", "2", 0.5, True, False, ("answer",)),),
        limits=Limits(1 << 26, 4096),
    )
    assert wire.decode_info(wire.encode_info(info)) == info


def test_the_committed_stubs_are_those_of_the_proto() -> None:
    command = [sys.executable, "protos/generate.py", "--check"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_scores_that_are_all_ok_are_on_the_wire_what_messages_are() -> None:
    values = [0.5, -0.0, 1e300, 5e-324]
    scorer = ScorerScores("helpful", "1", 2.0, tuple(Score(Status.OK, value) for value in values))
    sent = wire.encode_scores(GroupScores("g", (scorer,)))
    written = pb.ScorerScores(
        name="helpful", version="1", weight=2.0, scores=[pb.Score(status=pb.STATUS_OK, value=value) for value in values]
    )
    assert sent.scorers[0].SerializeToString() == written.SerializeToString()
