from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_OK: _ClassVar[Status]
    STATUS_NOT_APPLICABLE: _ClassVar[Status]
    STATUS_INVALID: _ClassVar[Status]
    STATUS_TIMEOUT: _ClassVar[Status]
    STATUS_FAILED: _ClassVar[Status]
STATUS_UNSPECIFIED: Status
STATUS_OK: Status
STATUS_NOT_APPLICABLE: Status
STATUS_INVALID: Status
STATUS_TIMEOUT: Status
STATUS_FAILED: Status

class Content(_message.Message):
    __slots__ = ("text", "json")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    text: str
    json: str
    def __init__(self, text: _Optional[str] = ..., json: _Optional[str] = ...) -> None: ...

class Completion(_message.Message):
    __slots__ = ("content", "token_ids", "columns_json", "prompt")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_JSON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    content: Content
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    columns_json: str
    prompt: Content
    def __init__(self, content: _Optional[_Union[Content, _Mapping]] = ..., token_ids: _Optional[_Iterable[int]] = ..., columns_json: _Optional[str] = ..., prompt: _Optional[_Union[Content, _Mapping]] = ...) -> None: ...

class ScoreGroupRequest(_message.Message):
    __slots__ = ("wire_version", "run_id", "step", "group_id", "prompt", "completions", "columns_json", "scorers")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_JSON_FIELD_NUMBER: _ClassVar[int]
    SCORERS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    run_id: str
    step: int
    group_id: str
    prompt: Content
    completions: _containers.RepeatedCompositeFieldContainer[Completion]
    columns_json: str
    scorers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, wire_version: _Optional[int] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ..., group_id: _Optional[str] = ..., prompt: _Optional[_Union[Content, _Mapping]] = ..., completions: _Optional[_Iterable[_Union[Completion, _Mapping]]] = ..., columns_json: _Optional[str] = ..., scorers: _Optional[_Iterable[str]] = ...) -> None: ...

class ScoreGroupsRequest(_message.Message):
    __slots__ = ("calls",)
    CALLS_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[GroupCall]
    def __init__(self, calls: _Optional[_Iterable[_Union[GroupCall, _Mapping]]] = ...) -> None: ...

class GroupCall(_message.Message):
    __slots__ = ("group", "traceparent", "tracestate")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    group: ScoreGroupRequest
    traceparent: str
    tracestate: str
    def __init__(self, group: _Optional[_Union[ScoreGroupRequest, _Mapping]] = ..., traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ...) -> None: ...

class ScoreCompletionRequest(_message.Message):
    __slots__ = ("wire_version", "run_id", "step", "group_id", "index", "sample_id", "of", "prompt", "completion", "scorers", "gather_s", "score_incomplete")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_ID_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    SCORERS_FIELD_NUMBER: _ClassVar[int]
    GATHER_S_FIELD_NUMBER: _ClassVar[int]
    SCORE_INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    run_id: str
    step: int
    group_id: str
    index: int
    sample_id: str
    of: int
    prompt: Content
    completion: Completion
    scorers: _containers.RepeatedScalarFieldContainer[str]
    gather_s: float
    score_incomplete: bool
    def __init__(self, wire_version: _Optional[int] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ..., group_id: _Optional[str] = ..., index: _Optional[int] = ..., sample_id: _Optional[str] = ..., of: _Optional[int] = ..., prompt: _Optional[_Union[Content, _Mapping]] = ..., completion: _Optional[_Union[Completion, _Mapping]] = ..., scorers: _Optional[_Iterable[str]] = ..., gather_s: _Optional[float] = ..., score_incomplete: bool = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("status", "value", "message")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    status: Status
    value: float
    message: str
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., value: _Optional[float] = ..., message: _Optional[str] = ...) -> None: ...

class ScorerScores(_message.Message):
    __slots__ = ("name", "version", "weight", "scores", "metrics", "extra_json")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    EXTRA_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    weight: float
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    metrics: _containers.ScalarMap[str, float]
    extra_json: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., weight: _Optional[float] = ..., scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., extra_json: _Optional[str] = ...) -> None: ...

class ScoreGroupResponse(_message.Message):
    __slots__ = ("group_id", "scorers", "config_digest", "queued_s", "compute_s")
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    SCORERS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    QUEUED_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    group_id: str
    scorers: _containers.RepeatedCompositeFieldContainer[ScorerScores]
    config_digest: str
    queued_s: float
    compute_s: float
    def __init__(self, group_id: _Optional[str] = ..., scorers: _Optional[_Iterable[_Union[ScorerScores, _Mapping]]] = ..., config_digest: _Optional[str] = ..., queued_s: _Optional[float] = ..., compute_s: _Optional[float] = ...) -> None: ...

class ScoreGroupsResponse(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[GroupAnswer]
    def __init__(self, answers: _Optional[_Iterable[_Union[GroupAnswer, _Mapping]]] = ...) -> None: ...

class GroupAnswer(_message.Message):
    __slots__ = ("index", "scores", "failure")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    index: int
    scores: ScoreGroupResponse
    failure: GroupFailure
    def __init__(self, index: _Optional[int] = ..., scores: _Optional[_Union[ScoreGroupResponse, _Mapping]] = ..., failure: _Optional[_Union[GroupFailure, _Mapping]] = ...) -> None: ...

class GroupFailure(_message.Message):
    __slots__ = ("code", "message", "pushback_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PUSHBACK_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    pushback_ms: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., pushback_ms: _Optional[int] = ...) -> None: ...

class ScoreCompletionResponse(_message.Message):
    __slots__ = ("scores", "group_size")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    scores: ScoreGroupResponse
    group_size: int
    def __init__(self, scores: _Optional[_Union[ScoreGroupResponse, _Mapping]] = ..., group_size: _Optional[int] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ("wire_version",)
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    def __init__(self, wire_version: _Optional[int] = ...) -> None: ...

class ScorerInfo(_message.Message):
    __slots__ = ("name", "kind", "version", "weight", "deterministic", "group_aware", "required_columns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    GROUP_AWARE_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    version: str
    weight: float
    deterministic: bool
    group_aware: bool
    required_columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., version: _Optional[str] = ..., weight: _Optional[float] = ..., deterministic: bool = ..., group_aware: bool = ..., required_columns: _Optional[_Iterable[str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_group_bytes", "max_completions", "max_groups")
    MAX_GROUP_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_GROUPS_FIELD_NUMBER: _ClassVar[int]
    max_group_bytes: int
    max_completions: int
    max_groups: int
    def __init__(self, max_group_bytes: _Optional[int] = ..., max_completions: _Optional[int] = ..., max_groups: _Optional[int] = ...) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("wire_version", "server_version", "config_digest", "scorers", "limits")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SCORERS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    server_version: str
    config_digest: str
    scorers: _containers.RepeatedCompositeFieldContainer[ScorerInfo]
    limits: Limits
    def __init__(self, wire_version: _Optional[int] = ..., server_version: _Optional[str] = ..., config_digest: _Optional[str] = ..., scorers: _Optional[_Iterable[_Union[ScorerInfo, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class SerializedScoreGroupsRequest(_message.Message):
    __slots__ = ("calls",)
    CALLS_FIELD_NUMBER: _ClassVar[int]
    calls: _containers.RepeatedCompositeFieldContainer[SerializedGroupCall]
    def __init__(self, calls: _Optional[_Iterable[_Union[SerializedGroupCall, _Mapping]]] = ...) -> None: ...

class SerializedGroupCall(_message.Message):
    __slots__ = ("group", "traceparent", "tracestate")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    group: bytes
    traceparent: str
    tracestate: str
    def __init__(self, group: _Optional[bytes] = ..., traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ...) -> None: ...

class SerializedScoreGroupsResponse(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[SerializedGroupAnswer]
    def __init__(self, answers: _Optional[_Iterable[_Union[SerializedGroupAnswer, _Mapping]]] = ...) -> None: ...

class SerializedGroupAnswer(_message.Message):
    __slots__ = ("index", "scores", "failure")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    index: int
    scores: bytes
    failure: GroupFailure
    def __init__(self, index: _Optional[int] = ..., scores: _Optional[bytes] = ..., failure: _Optional[_Union[GroupFailure, _Mapping]] = ...) -> None: ...
