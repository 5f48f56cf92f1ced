"""A Hugging Face model: found in a folder or on the hub, loaded with its tokenizer, and identified by a version.

Owns what can be wrong with a model's name, files, code and devices, and the one-line message for each. Knows nothing of
groups or scores. Nothing heavy is imported before a model is loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import ScorerOptions
from reward_server.scorers.loading import find_path, user_traceback

log = logging.getLogger("reward_server")

_SAMPLE_BYTES = 1 << 20
_DEVICE = r"^(auto|cpu|cuda(:\d+)?|mps)$"
_DIGESTED = (".safetensors", ".bin", ".json", ".jinja", ".py")

Task = Literal["SequenceClassification", "TokenClassification", "CausalLM"]
# Which of transformers' AutoModel classes may load a checkpoint that has code of its own, the best one first.
_AUTO_CLASSES: Mapping[Task, tuple[str, ...]] = {
    "SequenceClassification": (
        "AutoModelForSequenceClassification",
        "AutoModel",
        "AutoModelForTokenClassification",
        "AutoModelForCausalLM",
    ),
    "TokenClassification": (
        "AutoModelForTokenClassification",
        "AutoModel",
        "AutoModelForSequenceClassification",
        "AutoModelForCausalLM",
    ),
    "CausalLM": ("AutoModelForCausalLM",),
}
_WHAT = {
    "SequenceClassification": ("reward model", "sequence classification"),
    "TokenClassification": ("process reward model", "token classification"),
    "CausalLM": ("causal language model", "language modelling"),
}


class ModelOptions(ScorerOptions):
    """Options of every scorer that is a model."""

    model: str = Field(min_length=1, description="Name on the Hugging Face hub, or path of a folder.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    trust_remote_code: bool = Field(
        False,
        strict=True,
        description="Run the Python code that comes with the checkpoint, in the server's own process and with all of "
        "its rights. Nothing else switches it on. Pin `revision` to a commit that you have read.",
    )
    device: str = Field("auto", pattern=_DEVICE, description="auto (a GPU if there is one), cpu, cuda, cuda:0…")
    devices: tuple[str, ...] = Field(
        (),
        description="Several devices in place of `device`, such as [cuda:0, cuda:1]; each holds a copy of the model.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights; auto is the checkpoint's."
    )
    compile: bool | str = Field(
        False,
        description="Compile the model with torch.compile when it is loaded, which takes minutes: true, or the name of "
        "one of torch's back ends.",
    )

    @field_validator("devices")
    @classmethod
    def _are_devices(cls, devices: tuple[str, ...]) -> tuple[str, ...]:
        for device in devices:
            if not re.match(_DEVICE, device):
                raise ValueError(f"{device!r} is no device; give auto, cpu, cuda, cuda:0, cuda:1, …, or mps")
        return devices


def load_model(options: ModelOptions, task: Task) -> tuple[Any, Any, str]:
    """The model, its tokenizer and its version. Raises ScorerLoadError.

    A model whose checkpoint lacks some of its weights is refused: its scores would be noise.
    """
    source = source_of(options.model, options.base_dir)
    if not os.path.isdir(source):
        _ask_hub(options)
    model, tokenizer, missing = _from_pretrained(source, options, task)
    if missing:
        what, training = _WHAT[task]
        raise ScorerLoadError(
            f"model {options.model!r} is no {what}: its checkpoint has no weights for {', '.join(missing[:3])}; give "
            f"one that was trained for {training}{_hint_of_code(model.config, options)}"
        )
    _set_pad_token(model, tokenizer, options.model)
    return model.eval().requires_grad_(False), tokenizer, _version_of(source, model, options)


def source_of(model: str, base_dir: Path) -> str:
    """The folder if there is one, else the name on the hub. Raises ScorerLoadError for what can be neither."""
    folder = find_path(model, base_dir)
    if folder is not None:
        return str(folder)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ScorerLoadError(f"model {model!r}: there is no such folder; give a folder or a name on the hub")
    return model


def device_of(name: str) -> str:
    """The name of a torch device that is there. Raises ScorerLoadError."""
    try:
        import torch  # noqa: PLC0415 - only where it runs
    except ImportError as error:
        raise ScorerLoadError(f"a model needs torch ({error}): pip install 'grpo-plugin[server]'") from error
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(name.partition(":")[2] or 0) >= count:
            raise ScorerLoadError(f"device {name!r}: torch sees {count} CUDA devices; set device: auto or cpu")
    return name


def code_of(config: Any) -> tuple[str, ...]:
    """The Python classes that a checkpoint's own code defines, by its config.json; empty for most checkpoints."""
    named = getattr(config, "auto_map", None) or {}
    values = (value for item in named.values() for value in (item if isinstance(item, (list, tuple)) else [item]))
    return tuple(dict.fromkeys(value for value in values if isinstance(value, str)))


def folder_digest(files: Iterable[Path], folder: Path) -> str:
    """Digest of each file's name, size, first and last MiB: training changes all of a file of weights."""
    digest = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as stream:
            size = file.stat().st_size
            digest.update(json.dumps([str(file.relative_to(folder)), size]).encode() + stream.read(_SAMPLE_BYTES))
            stream.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0]


def _version_of(source: str, model: Any, options: ModelOptions) -> str:
    commit = getattr(model.config, "_commit_hash", None)
    weights = commit or options.revision or "main"
    if os.path.isdir(source):
        folder = Path(source)
        weights = folder_digest((file for file in folder.iterdir() if file.suffix in _DIGESTED), folder)
    return f"{Path(options.model).name}@{weights[:12]}/{model.dtype}".replace("torch.", "")


def _ask_hub(options: ModelOptions) -> None:
    """One short question whether the model exists: transformers asks for half a minute when the hub is out of reach."""
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache  # noqa: PLC0415 - only where it runs

        if not isinstance(try_to_load_from_cache(options.model, "config.json", revision=options.revision), str):
            HfApi().model_info(options.model, revision=options.revision, timeout=10)
    except Exception as error:  # the hub, HTTP and the network each have many kinds
        raise ScorerLoadError(
            f"model {options.model!r} is neither a folder nor to be had from the Hugging Face hub: {first_line(error)}"
        ) from error


def _from_pretrained(source: str, options: ModelOptions, task: Task) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer and the names of the weights that the checkpoint lacks."""
    try:
        import transformers  # noqa: PLC0415 - only where it runs

        # Always said, also where it is false: unsaid, transformers asks on the terminal.
        common: dict[str, Any] = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
        config = transformers.AutoConfig.from_pretrained(source, **common)
        _announce_code(config, options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **common)
        auto_class = getattr(transformers, _auto_class(config, options, task))
        model, report = auto_class.from_pretrained(source, dtype=options.dtype, output_loading_info=True, **common)
    except ImportError as error:
        raise ScorerLoadError(
            f"type {options.type} cannot import what model {options.model!r} needs ({error}): pip install "
            "'grpo-plugin[server]', and what the checkpoint's own code imports"
        ) from error
    except (OSError, ValueError) as error:  # how transformers reports names, files and configs that it cannot use
        if "trust_remote_code" in str(error) and not options.trust_remote_code:
            raise ScorerLoadError(_code_refused(options)) from error
        raise ScorerLoadError(f"model {options.model!r} cannot be loaded: {first_line(error)}") from error
    except Exception as error:
        raise ScorerLoadError(f"model {options.model!r}: loading it raised\n{user_traceback(error)}") from error
    return model, tokenizer, sorted(report["missing_keys"])


def _auto_class(config: Any, options: ModelOptions, task: Task) -> str:
    named = (getattr(config, "auto_map", None) or {}) if options.trust_remote_code else {}
    return next((name for name in _AUTO_CLASSES[task] if name in named), _AUTO_CLASSES[task][0])


def _announce_code(config: Any, options: ModelOptions) -> None:
    if options.trust_remote_code and (code := code_of(config)):
        commit = getattr(config, "_commit_hash", None)
        log.warning(
            "scorer %r: trust_remote_code is on, so code of the checkpoint %s%s runs in this process: %s",
            options.name,
            options.model,
            f" (commit {commit})" if commit else "",
            ", ".join(code),
        )


def _code_refused(options: ModelOptions) -> str:
    return (
        f"model {options.model!r} has Python code of its own, which would run in this server with all of its rights; "
        "read it, pin revision to the commit that you have read, and set trust_remote_code: true"
    )


def _hint_of_code(config: Any, options: ModelOptions) -> str:
    if options.trust_remote_code or not code_of(config):
        return ""
    return f"; or it needs its own code ({', '.join(code_of(config))}): read it, and set trust_remote_code: true"


def _set_pad_token(model: Any, tokenizer: Any, name: str) -> None:
    """As TRL does: a classifier scores the last token that is not padding, so it must know the padding token."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ScorerLoadError(f"model {name!r}: its tokenizer has neither a padding nor an end token; give it one")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
