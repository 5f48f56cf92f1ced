"""What a server is told to be: its configuration, read from YAML or a mapping and checked by field.

Owns the file's shape and the messages about what is wrong in it. Each scorer's options are the registry's; what is
listened on and how a server lives is `server`'s.
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
    """What a caller may send, and all callers together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_group_bytes: int = Field(default=64 << 20, gt=0, lt=2**31, description="Longest serialised request, in bytes.")
    max_completions: int = Field(default=4096, gt=0, description="Most completions in one group.")
    max_queued_completions: int = Field(
        default=65_536,
        gt=0,
        description="Completions that may be in the server at once, waiting or being scored; beyond it callers are "
        "told when to come back. A single group is always taken.",
    )
    max_queued_bytes: int = Field(default=1 << 30, gt=0, description="The same bound in bytes of serialised requests.")


def _in_folder(path: Path | None, info: ValidationInfo) -> Path | None:
    """Relative to the configuration's folder, as every path in it."""
    return None if path is None else Path((info.context or {}).get("base_dir", "")) / path


class TLSConfig(BaseModel):
    """Encryption on every host:port of `listen`. The files are PEM, and are read when the server starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cert: Path = Field(description="The server's certificate, with the intermediate ones after it.")
    key: Path = Field(description="Its private key, unencrypted.")
    client_ca: Path | None = Field(
        None, description="Certificates that a caller's must be signed by (mutual TLS). Unset, callers need none."
    )

    _paths = field_validator("cert", "key", "client_ca")(_in_folder)


class CacheConfig(BaseModel):
    """Scores that are kept by content and given again. Only those of scorers that are deterministic are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: int = Field(256 << 20, gt=0, description="Memory that kept scores may take, in bytes.")
    path: Path | None = Field(
        None,
        description="A file for them, which outlasts the server and which several servers of this machine may share. "
        "It is written as it needs be; not on a network's file system. Unset, they are in memory only.",
    )
    max_disk_bytes: int = Field(4 << 30, gt=0, description="Size of that file; beyond it the oldest scores leave.")

    _paths = field_validator("path")(_in_folder)


class MetricsConfig(BaseModel):
    """A page for Prometheus: counts and times by scorer, code and status; no text, run or token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = Field(description="host:port of the page, http://host:port/metrics; port 0 takes a free one.")
    allow_insecure: bool = Field(
        False, description="Allow a page that other machines reach; anybody there may read it, unencrypted."
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
        1.0, gt=0, le=1, description="Share of the groups that are written, chosen by name: the same on every replica."
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
    """What one token may ask of one server process; beyond it, it is told when to come back."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    calls_per_minute: float | None = Field(None, gt=0, description="Groups a minute; unset, as many as it likes.")
    completions_per_minute: float | None = Field(None, gt=0, description="Completions a minute.")


class ServerConfig(BaseModel):
    """A server's whole configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scorers: tuple[SerializeAsAny[ScorerOptions], ...] = Field(
        description="The scorers, each with type, name, weight and its own options."
    )
    processes: int = Field(
        1,
        ge=1,
        description="Server processes, each with an event loop, a copy of every scorer and limits.max_queued_* of its "
        "own; they share the addresses and the workers. Callers are dealt out to them by connection.",
    )
    workers: int = Field(
        default_factory=_default_workers,
        ge=1,
        description="Worker processes for scorers that are synchronous code; each scores one group at a time. Every "
        "server process has at least one.",
    )
    worker_memory_bytes: int | None = Field(
        None,
        gt=0,
        description="Memory that a worker process may hold as data (Linux); beyond it an allocation fails, and with it "
        "the score. Unset, only the system's out-of-memory killer stops a worker.",
    )
    limits: LimitsConfig = Field(LimitsConfig(), description="What a caller may send.")
    cache: CacheConfig | None = Field(
        None,
        description="Keep the scores of deterministic scorers: on, or any of max_bytes, path, max_disk_bytes. Off if "
        "unset: sampled completions seldom repeat, and a scorer that is wrongly held deterministic would be frozen.",
    )
    listen: tuple[str, ...] = Field(
        (DEFAULT_LISTEN,), min_length=1, description="Addresses, each host:port or unix:path; port 0 takes a free one."
    )
    drain_grace_s: float = Field(
        30.0, ge=0, allow_inf_nan=False, description="Seconds that calls in flight get to finish when the server stops."
    )
    max_connection_age_s: float = Field(
        300.0,
        gt=0,
        lt=2**31 / 1000,
        description="Seconds, give or take a tenth, after which a caller is asked to connect again, so that replicas "
        "which were added behind its name since then get traffic. Calls in flight finish, however long they take.",
    )
    tls: TLSConfig | None = Field(
        None, description="Encryption: cert and key, and client_ca for mutual TLS. Unix sockets need none and use none."
    )
    tokens_file: Path | None = Field(
        None,
        description="A file of bearer tokens, one a line as `token` or `name: token`, # begins a comment: callers need "
        "one of them, on unix sockets too. Read again when it changes.",
    )
    quotas: dict[str, QuotaConfig] = Field(
        default_factory=dict, description="What each token may ask for in a minute, by its name in tokens_file."
    )
    allow_insecure: bool = Field(
        False, description="Allow listening beyond this machine without TLS, or without tokens and client certificates."
    )
    reflection: bool = Field(
        True,
        description="Serve gRPC reflection: the published .proto, to anybody who reaches the port, without a token. "
        "Health (grpc.health.v1) is always served, without a token too: balancers ask it, and it tells only whether "
        "the server serves.",
    )
    metrics: MetricsConfig | None = Field(None, description="A page for Prometheus. Unset, there is none.")
    records: RecordsConfig | None = Field(
        None, description="A file of what was scored. Unset, prompts and completions are written nowhere."
    )

    _paths = field_validator("tokens_file")(_in_folder)

    @field_validator("cache", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value

    @field_validator("listen", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def load_config(path: str | Path) -> ServerConfig:
    """Reads a YAML (or JSON) file. Relative paths in it are looked up in its folder. Raises ConfigError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path} (working folder: {Path.cwd()})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from error
    return config_from_text(text, path.resolve().parent, source=str(path))


def config_from_text(text: str, base_dir: Path | None = None, source: str = "configuration") -> ServerConfig:
    """A configuration from YAML or JSON text. Raises ConfigError, which names `source` and the line."""
    try:
        mapping = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not YAML: {error.problem or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error
    return config_from_mapping(mapping, base_dir, source)


def config_from_mapping(mapping: Any, base_dir: Path | None = None, source: str = "configuration") -> ServerConfig:
    """A configuration from what its file holds. Raises ConfigError that lists everything wrong, a line a field."""
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
    """SHA-256 over what decides the scores: every scorer's options and version, not where or how it is served."""
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
