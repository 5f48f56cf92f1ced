"""The configuration of a server, read from YAML or from a mapping, and checked field by field.

Owns the shape of the file and the messages about errors in it. Knows nothing of the options of each scorer, which
`scorers.registry` parses, nor of what a server does with its configuration.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from reward_server.errors import ConfigError
from reward_server.scorers.base import ScorerOptions
from reward_server.scorers.registry import explain, parse_options

DEFAULT_LISTEN = "127.0.0.1:50051"


def _default_workers() -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cpus)


class LimitsConfig(BaseModel):
    """Limits on what one caller, and all callers together, may send."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_group_bytes: int = Field(
        default=64 << 20, gt=0, lt=2**31, description="Largest request, in bytes as it is sent."
    )
    max_completions: int = Field(default=4096, gt=0, description="Largest number of completions in one group.")
    max_queued_completions: int = Field(
        default=65_536,
        gt=0,
        description="Completions that may be in the server at once, waiting or being scored. Beyond that, callers are "
        "told when to try again. A single group is always accepted. As many again may be gathered, where the "
        "completions of a group are sent one by one.",
    )
    max_queued_bytes: int = Field(default=1 << 30, gt=0, description="The same limit in bytes of requests.")


def _in_folder(path: Path | None, info: ValidationInfo) -> Path | None:
    """A path relative to the folder of the configuration."""
    return None if path is None else Path((info.context or {}).get("base_dir", "")) / path


class TLSConfig(BaseModel):
    """Encryption for every host:port of `listen`. The files are PEM, and are read again when they change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cert: Path = Field(description="The server's certificate, followed by intermediate certificates.")
    key: Path = Field(description="The private key of the certificate, unencrypted.")
    client_ca: Path | None = Field(
        None,
        description="Certificates that sign those of callers (mutual TLS). Unset, callers need no certificate.",
    )

    _paths = field_validator("cert", "key", "client_ca")(_in_folder)


class CacheConfig(BaseModel):
    """Keeps the scores of deterministic scorers by content, and reuses them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: int = Field(256 << 20, gt=0, description="Memory for kept scores, in bytes.")
    path: Path | None = Field(
        None,
        description="A file for kept scores. It survives the server, and several servers of one machine may share it; "
        "it must not be on a network file system. Unset, scores are kept in memory only.",
    )
    max_disk_bytes: int = Field(
        4 << 30, gt=0, description="Size limit of that file, in bytes; beyond it the oldest scores are removed."
    )

    _paths = field_validator("path")(_in_folder)


class MetricsConfig(BaseModel):
    """A page for Prometheus: counts and times by scorer, code and status. It holds no text, run or token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field(
        description="host:port of the page, which is http://host:port/metrics; port 0 takes a free port."
    )
    allow_insecure: bool = Field(
        False, description="Allow a page that other machines can reach. Anybody there can read it, unencrypted."
    )


class RecordsConfig(BaseModel):
    """What was scored, written down: prompts, completions, scores, statuses, versions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(
        description="The file, or for parquet the folder; only its owner may read it. Full JSONL files are renamed "
        "path.1, path.2 and so on."
    )
    format: Literal["jsonl", "parquet"] = Field(
        "jsonl",
        description="jsonl: a JSON object a group. parquet: a row a completion, in a folder of parts that other "
        "programs can read while the server runs; needs grpo-plugin[records].",
    )
    part_groups: int = Field(256, ge=1, description="Groups after which a Parquet part is closed.")
    part_s: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which a Parquet part is closed anyway.",
    )
    sample: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of groups that are written; a group is chosen by its id, the same on every replica.",
    )
    max_bytes: int = Field(64 << 20, gt=0, description="Size at which a new JSONL file is begun.")
    keep: int = Field(
        8,
        ge=1,
        description="JSONL files that are kept, with the one that is written to; the oldest is removed. Parquet parts "
        "take keep × max_bytes in all.",
    )

    _paths = field_validator("path")(_in_folder)


class QuotaConfig(BaseModel):
    """What one token may ask of one server process. Beyond that, its callers are told when to try again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    calls_per_minute: float | None = Field(None, gt=0, description="Groups per minute. Unset, there is no limit.")
    completions_per_minute: float | None = Field(
        None, gt=0, description="Completions per minute. Unset, there is no limit."
    )


class ServerConfig(BaseModel):
    """The configuration of a reward server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scorers: tuple[SerializeAsAny[ScorerOptions], ...] = Field(
        description="The scorers, each with type, name, weight and its own options."
    )
    processes: int = Field(
        1,
        ge=1,
        description="Server processes. Each has its own event loop, its own copy of every scorer and its own "
        "limits.max_queued_*; they share the addresses and the workers. Callers are distributed by connection.",
    )
    workers: int = Field(
        default_factory=_default_workers,
        ge=1,
        description="Worker processes for synchronous scorers. Each scores one group at a time, and every server "
        "process has at least one.",
    )
    worker_memory_bytes: int | None = Field(
        None,
        gt=0,
        description="Memory limit of a worker process, in bytes of data (Linux). Beyond it an allocation fails, and so "
        "does the score. Unset, only the system's out-of-memory killer stops a worker.",
    )
    limits: LimitsConfig = Field(LimitsConfig(), description="Limits on what callers may send.")
    cache: CacheConfig | None = Field(
        None,
        description="Keep the scores of deterministic scorers: true, or a mapping. It is off by default, since sampled "
        "completions seldom repeat, and the scores of a scorer that is wrongly taken as deterministic would be frozen.",
    )
    listen: tuple[str, ...] = Field(
        (DEFAULT_LISTEN,), min_length=1, description="Addresses, each host:port or unix:path; port 0 takes a free port."
    )
    drain_grace_s: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Seconds that calls in flight get to finish when the server stops."
    )
    max_connection_age_s: float = Field(
        300.0,
        gt=0,
        lt=2**31 / 1000,
        description="Seconds (± 10 %) after which a caller is asked to connect again, so that replicas that were added "
        "behind the server's name get traffic. Calls in flight finish, however long they take.",
    )
    tls: TLSConfig | None = Field(
        None, description="Encryption: cert and key, and client_ca for mutual TLS. Unix sockets are not encrypted."
    )
    tokens_file: Path | None = Field(
        None,
        description="A file of bearer tokens, one per line as `token` or `name: token`; # begins a comment. Callers "
        "need one of them, on unix sockets too. The file is read again when it changes.",
    )
    quotas: dict[str, QuotaConfig] = Field(
        default_factory=dict, description="What each token may ask for per minute, by its name in tokens_file."
    )
    allow_insecure: bool = Field(
        False,
        description="Allow connections from other machines without TLS, or without tokens and client certificates.",
    )
    reflection: bool = Field(
        True,
        description="Serve gRPC reflection: it shows the published .proto to anybody who reaches the port, without a "
        "token. Health (grpc.health.v1) is always served, also without a token: load balancers ask for it, and it "
        "tells only whether the server serves.",
    )
    metrics: MetricsConfig | None = Field(None, description="A metrics page for Prometheus. Unset, there is none.")
    records: RecordsConfig | None = Field(
        None, description="A file of the groups that were scored. Unset, prompts and completions are not written."
    )

    _paths = field_validator("tokens_file")(_in_folder)

    @field_validator("cache", mode="before", json_schema_input_type=bool | CacheConfig | None)
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value

    @field_validator("listen", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def load_config(path: str | Path) -> ServerConfig:
    """Reads a YAML or JSON file. Relative paths in it are relative to its folder. Raises ConfigError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path} (working folder: {Path.cwd()})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from error
    return config_from_text(text, path.resolve().parent, source=str(path))


def config_from_text(text: str, base_dir: Path | None = None, source: str = "configuration") -> ServerConfig:
    """Parses YAML or JSON text. Raises ConfigError, which names `source` and the line."""
    try:
        mapping = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not YAML: {error.problem or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error
    return config_from_mapping(mapping, base_dir, source)


def config_from_mapping(mapping: Any, base_dir: Path | None = None, source: str = "configuration") -> ServerConfig:
    """Validates what a file would hold. Raises ConfigError, which lists every error in a line of its own."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{source} must hold a mapping with the key `scorers`, not {mapping!r:.80}")
    problems: list[str] = []
    rest = {str(key): value for key, value in mapping.items() if key != "scorers"}
    scorers = _parse_scorers(mapping, base_dir, problems)
    try:
        config = ServerConfig.model_validate({**rest, "scorers": scorers}, context={"base_dir": base_dir or ""})
    except ValidationError as error:
        problems.append(explain(error, ServerConfig, "configuration").replace("configuration.", ""))
    if problems:
        lines = [line for problem in problems for line in problem.splitlines()]
        raise ConfigError(
            f"{source}: {lines[0]}" if len(lines) == 1 else "\n  ".join([f"{source} cannot be used:", *lines])
        )
    return config


def digest_of(scorers: Sequence[ScorerOptions], versions: Sequence[str]) -> str:
    """SHA-256 over everything that decides the scores: every scorer's options and version, but not how it is served."""
    described = [
        {"options": options.model_dump(mode="json"), "version": version}
        for options, version in zip(scorers, versions, strict=True)
    ]
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _parse_scorers(mapping: Mapping[str, Any], base_dir: Path | None, problems: list[str]) -> tuple[ScorerOptions, ...]:
    entries = mapping.get("scorers")
    if entries is None or entries == []:
        problems.append("scorers: a server needs at least one; add an entry with type and name")
        return ()
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        problems.append(f"scorers must be a list of mappings, not {entries!r:.80}; begin each scorer with `- type:`")
        return ()
    scorers: list[ScorerOptions] = []
    for index, entry in enumerate(entries):
        try:
            scorers.append(parse_options(entry, where=f"scorers[{index}]", base_dir=base_dir))
        except ConfigError as error:
            problems.append(str(error))
    problems += _duplicates(entries)
    return tuple(scorers)


def _duplicates(entries: Sequence[Any]) -> list[str]:
    first: dict[str, int] = {}
    problems = []
    for index, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if isinstance(name, str) and first.setdefault(name, index) != index:
            problems.append(
                f"scorers[{index}].name: {name!r} is also the name of scorers[{first[name]}]; give each its own"
            )
    return problems
