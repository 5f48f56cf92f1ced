"""Translates our types to protobuf messages and back. No other file touches the fields of messages.

Owns the translation and the checks that a message needs before it becomes one of our types. Knows nothing of channels,
servers or scorers.

Columns, chat messages and extra columns travel as JSON (`wire_json`). Text that UTF-8 cannot hold (a lone surrogate,
which decoding a truncated completion can produce) travels as an escaped JSON string.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from reward_server.errors import InvalidGroupError, WireVersionError
from reward_server.types import (
    WIRE_VERSION,
    Completion,
    Content,
    Group,
    GroupScores,
    Limits,
    Sample,
    SampleScores,
    Score,
    ScorerInfo,
    ScorerScores,
    ServerInfo,
    Status,
)
from reward_server.v1 import reward_pb2 as pb
from reward_server.wire_json import dump_columns, dump_json, load_json, load_object
from reward_server.wire_text import text_group

RequestT = TypeVar("RequestT", bound=Message)

_OK = Status.OK
_OK_NUMBER = int(_OK)
# A field of ScorerScores as it is serialised: tag 4, 11 bytes, status OK, the tag of the value that follows.
_OK_SCORE = b"\x22\x0b\x08\x01\x11"

# ------------------------------------------------------------------------------------------------------------- content


def _fill_content(message: pb.Content, content: Content, what: str) -> None:
    if not isinstance(content, str):
        message.json = dump_json(list(content), what)
        return
    try:
        message.text = content
    except (UnicodeEncodeError, ValueError):  # a lone surrogate
        message.json = json.dumps(content)


def _decode_content(message: pb.Content, what: str) -> Content:
    kind = message.WhichOneof("kind")
    if kind == "text":
        return message.text
    if kind is None:
        raise InvalidGroupError(f"{what} is missing: set text or json")
    content = load_json(message.json, what)
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(item, dict) for item in content):
        return content
    raise InvalidGroupError(f"{what} must be text, a JSON string or a JSON list of messages")


# --------------------------------------------------------------------------------------------------------------- group


def encode_group(group: Group) -> pb.ScoreGroupRequest:
    """A group as a request. Raises InvalidGroupError for a value that JSON cannot hold."""
    request = pb.ScoreGroupRequest(
        wire_version=WIRE_VERSION,
        run_id=group.run_id,
        step=group.step,
        group_id=group.group_id,
        columns_json=dump_columns(group.columns),
        scorers=group.scorers,
    )
    _fill_content(request.prompt, group.prompt, "the prompt")
    add = request.completions.add
    for index, completion in enumerate(group.completions):
        _fill_completion(add(), completion, index)  # in place, which takes half the time of building messages first
    return request


def _fill_completion(message: pb.Completion, completion: Completion, index: int) -> None:
    _fill_content(message.content, completion.content, f"completion {index}")
    if completion.token_ids:
        message.token_ids.extend(completion.token_ids)
    if completion.columns:
        message.columns_json = dump_columns(completion.columns)
    if completion.prompt is not None:
        _fill_content(message.prompt, completion.prompt, f"the prompt of completion {index}")


def parse_group(data: bytes) -> Group:
    """A serialised request as a group. Raises WireVersionError, or InvalidGroupError if it is no group."""
    if (group := text_group(data)) is not None:
        return group
    request = _parsed(pb.ScoreGroupRequest, data)
    _check_version(request.wire_version)
    return decode_group(request)


def parse_info_request(data: bytes) -> None:
    """Checks a serialised request for a server's info, which may lack the wire version. Raises as `parse_group`."""
    request = _parsed(pb.GetServerInfoRequest, data)
    _check_version(request.wire_version or WIRE_VERSION)


def _parsed(kind: type[RequestT], data: bytes) -> RequestT:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidGroupError(f"the request is no {kind.__name__}: {error}") from error


def _check_version(version: int) -> None:
    if version != WIRE_VERSION:
        raise WireVersionError(
            f"this server speaks wire version {WIRE_VERSION}, the caller {version or 'names none'}: install the same "
            f"grpo-plugin on both sides, or have your own client set wire_version = {WIRE_VERSION}"
        )


def decode_group(request: pb.ScoreGroupRequest) -> Group:
    """A request as a group. Raises InvalidGroupError if it is no group."""
    if not request.completions:
        raise InvalidGroupError("a group needs at least one completion; this request has none")
    return Group(
        prompt=_decode_content(request.prompt, "the prompt"),
        completions=tuple([_decode_completion(message, index) for index, message in enumerate(request.completions)]),
        columns=load_object(request.columns_json, "columns_json"),
        run_id=request.run_id,
        step=request.step,
        group_id=request.group_id,
        scorers=tuple(request.scorers),
    )


def _decode_completion(message: pb.Completion, index: int) -> Completion:
    # A step has thousands of completions, and nearly all of them are plain text: this path is fast for those.
    token_ids, columns_json = message.token_ids, message.columns_json
    return Completion(
        message.content.text or _decode_content(message.content, f"completion {index}"),
        tuple(token_ids) if token_ids else None,
        load_object(columns_json, f"columns_json of completion {index}") if columns_json else {},
        _decode_content(message.prompt, f"the prompt of completion {index}") if message.HasField("prompt") else None,
    )


# -------------------------------------------------------------------------------------------------------------- sample


def encode_sample(sample: Sample) -> pb.ScoreCompletionRequest:
    """A sample as a request. Raises InvalidGroupError for a value that JSON cannot hold."""
    request = pb.ScoreCompletionRequest(
        wire_version=WIRE_VERSION,
        run_id=sample.run_id,
        step=sample.step,
        group_id=sample.group_id,
        index=sample.index,
        sample_id=sample.sample_id,
        of=sample.of,
        scorers=sample.scorers,
        gather_s=sample.gather_s or 0.0,
        score_incomplete=sample.score_incomplete,
    )
    _fill_content(request.prompt, sample.prompt, "the prompt")
    _fill_completion(request.completion, sample.completion, sample.index)
    return request


def parse_sample(data: bytes) -> Sample:
    """A serialised request as a sample. Raises WireVersionError, or InvalidGroupError if it is no sample."""
    request = _parsed(pb.ScoreCompletionRequest, data)
    _check_version(request.wire_version)
    return Sample(
        prompt=_decode_content(request.prompt, "the prompt"),
        completion=_decode_completion(request.completion, request.index),
        of=request.of or int(not request.group_id),
        index=request.index,
        sample_id=request.sample_id,
        run_id=request.run_id,
        step=request.step,
        group_id=request.group_id,
        scorers=tuple(request.scorers),
        gather_s=request.gather_s or None,
        score_incomplete=request.score_incomplete,
    )


def encode_sample_scores(scores: GroupScores, group_size: int) -> pb.ScoreCompletionResponse:
    """The scores of one sample, with G = 1, as a response."""
    return pb.ScoreCompletionResponse(scores=encode_scores(scores), group_size=group_size)


def decode_sample_scores(response: pb.ScoreCompletionResponse) -> SampleScores:
    """A response as the scores of one sample."""
    return SampleScores(decode_scores(response.scores), response.group_size)


# -------------------------------------------------------------------------------------------------------------- scores


def encode_scores(scores: GroupScores) -> pb.ScoreGroupResponse:
    """The scores of a group as a response."""
    response = pb.ScoreGroupResponse(
        group_id=scores.group_id,
        config_digest=scores.config_digest,
        queued_s=scores.queued_s,
        compute_s=scores.compute_s,
    )
    for scorer in scores.scorers:
        _fill_scorer_scores(response.scorers.add(), scorer)
    return response


def _fill_scorer_scores(message: pb.ScorerScores, scorer: ScorerScores) -> None:
    message.name, message.version, message.weight = scorer.name, scorer.version, scorer.weight
    values = [score.value for score in scorer.scores if score.status is _OK and not score.message]
    if len(values) == len(scorer.scores):
        message.MergeFromString(_ok_scores(values))
    else:
        message.scores.extend(map(_encode_score, scorer.scores))
    if scorer.metrics:
        message.metrics.update(scorer.metrics)
    if scorer.extra:
        message.extra_json = json.dumps(scorer.extra, allow_nan=False)


def _ok_scores(values: list[float | None]) -> bytes:
    """The serialised `scores` of ScorerScores, all OK; nearly all are, and G messages take six times as long."""
    fields: list[Any] = [_OK_SCORE] * (2 * len(values))
    fields[1::2] = values
    return struct.pack("<" + "5sd" * len(values), *fields)


def _encode_score(score: Score) -> pb.Score:
    status, message = int(score.status), _as_utf8(score.message)
    return pb.Score(status=status, value=score.value, message=message)  # type: ignore[arg-type]


def _as_utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def decode_scores(response: pb.ScoreGroupResponse) -> GroupScores:
    """A response as the scores of a group."""
    return GroupScores(
        group_id=response.group_id,
        scorers=tuple([_decode_scorer_scores(message) for message in response.scorers]),
        config_digest=response.config_digest,
        queued_s=response.queued_s,
        compute_s=response.compute_s,
    )


def _decode_scorer_scores(message: pb.ScorerScores) -> ScorerScores:
    return ScorerScores(
        name=message.name,
        version=message.version,
        weight=message.weight,
        scores=tuple([_decode_score(score) for score in message.scores]),
        metrics=dict(message.metrics),
        extra=json.loads(message.extra_json) if message.extra_json else {},
    )


def _decode_score(message: pb.Score) -> Score:
    if message.status == _OK_NUMBER and message.HasField("value"):
        return Score(_OK, message.value, message.message)
    try:
        status = Status(message.status)
    except ValueError:  # a status that only later servers know: it is not a score
        return Score(Status.FAILED, message=f"unknown status {message.status}: {message.message}")
    if status is _OK:
        return Score(Status.INVALID, message="status OK without a value")
    return Score(status, None, message.message)


# ---------------------------------------------------------------------------------------------------------------- info


def encode_info(info: ServerInfo) -> pb.GetServerInfoResponse:
    """A server's info as a response."""
    return pb.GetServerInfoResponse(
        wire_version=info.wire_version,
        server_version=info.server_version,
        config_digest=info.config_digest,
        scorers=[pb.ScorerInfo(**dataclasses.asdict(scorer)) for scorer in info.scorers],
        limits=pb.Limits(**dataclasses.asdict(info.limits)),
    )


def decode_info(response: pb.GetServerInfoResponse) -> ServerInfo:
    """A response as a server's info."""
    limits = response.limits
    return ServerInfo(
        wire_version=response.wire_version,
        server_version=response.server_version,
        config_digest=response.config_digest,
        scorers=tuple(
            ScorerInfo(
                name=scorer.name,
                kind=scorer.kind,
                version=scorer.version,
                weight=scorer.weight,
                deterministic=scorer.deterministic,
                group_aware=scorer.group_aware,
                required_columns=tuple(scorer.required_columns),
            )
            for scorer in response.scorers
        ),
        limits=Limits(limits.max_group_bytes, limits.max_completions, limits.max_groups),
    )
