"""A Hugging Face model that scores: found, loaded, put on devices, and what it says of itself.

Owns what can be wrong with a model's name, files, labels and devices, and says it in a line. Knows nothing of groups.
Nothing heavy is imported before a model is loaded.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import ScorerOptions
from reward_server.scorers.loading import did_you_mean, find_path, user_traceback

_SAMPLE_BYTES = 1 << 20
# What a compiled model meets before it serves: one row and several, each of two lengths, are all the cases it makes.
_SHAPES = ((2, 8), (3, 24), (1, 16), (1, 32))
_DEVICE = r"^(auto|cpu|cuda(:\d+)?|mps)$"


class ModelOptions(ScorerOptions):
    """Options of every scorer that is a model."""

    model: str = Field(min_length=1, description="Name on the Hugging Face hub, or path of a folder.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    label: int | str | None = Field(
        None, description="Index or name of the label whose logit is the score; needed if the model has several."
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


class Models:
    """A loaded model, a copy a device, and its tokenizer."""

    def __init__(self, options: ModelOptions, *, per_token: bool):
        """A classifier of texts, or of tokens. Raises ScorerLoadError."""
        source = _source(options)
        devices = [_device(device) for device in options.devices or (options.device,)]
        model, self.tokenizer = _load(source, options, per_token)
        _set_pad_token(model, self.tokenizer, options.model)
        model.eval().requires_grad_(False)
        # The last takes the one that was read; a model may keep state of a forward pass, so each has its own.
        self._replicas = [copy.deepcopy(model).to(device) for device in devices[:-1]] + [model.to(devices[-1])]
        self.label = _label_index(model.config, options)
        self.positions = _positions(model.config)
        self.version = _version_of(source, model, options)
        self._is_compiled = bool(options.compile)
        if self._is_compiled:
            self._compile(options)

    def __len__(self) -> int:
        """How many copies there are."""
        return len(self._replicas)

    def logits(self, ids: Sequence[Sequence[int]], replica: int) -> Any:
        """In float32: [rows, labels], or [rows, tokens, labels] of a classifier of tokens. Padded on the right."""
        import torch  # noqa: PLC0415 - only where it runs

        try:
            return self._forward(ids, self._replicas[replica])
        except torch.OutOfMemoryError as error:
            message = _first_line(error)
        # Raised anew: the first one's traceback would keep the batch in memory while its halves are tried.
        torch.cuda.empty_cache()
        raise MemoryError(message)

    def _forward(self, ids: Sequence[Sequence[int]], model: Any) -> Any:
        import torch  # noqa: PLC0415 - only where it runs

        rows = [torch.tensor(row) for row in ids]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        if self._is_compiled and padded.shape[1] == 1:  # a case of its own, which nothing has compiled
            padded = torch.nn.functional.pad(padded, (0, 1), value=self.tokenizer.pad_token_id)
        mask = torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in ids])[:, None]
        with torch.inference_mode():
            return model(input_ids=padded.to(model.device), attention_mask=mask.long().to(model.device)).logits.float()

    def _compile(self, options: ModelOptions) -> None:
        try:
            for replica, model in enumerate(self._replicas):
                model.compile(dynamic=True, backend="inductor" if options.compile is True else options.compile)
                for rows, tokens in _SHAPES:
                    self.logits([[0] * tokens] * rows, replica)
        except Exception as error:
            raise ScorerLoadError(
                f"model {options.model!r} cannot be compiled: {_first_line(error)}; set compile: false"
            ) from error


def _version_of(source: str, model: Any, options: ModelOptions) -> str:
    commit = getattr(model.config, "_commit_hash", None)
    weights = _folder_digest(Path(source)) if os.path.isdir(source) else commit or options.revision or "main"
    return f"{Path(options.model).name}@{weights[:12]}/{model.dtype}".replace("torch.", "")


def _source(options: ModelOptions) -> str:
    """The folder if there is one, else the name on the hub."""
    folder = find_path(options.model, options.base_dir)
    if folder is not None:
        return str(folder)
    if options.model.startswith((".", "/", "~")) or options.model.count("/") > 1:
        raise ScorerLoadError(f"model {options.model!r}: there is no such folder; give a folder or a name on the hub")
    _ask_hub(options)
    return options.model


def _ask_hub(options: ModelOptions) -> None:
    """One short question whether the model exists: transformers asks for half a minute when the hub is out of reach."""
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache  # noqa: PLC0415 - only where it runs

        if not isinstance(try_to_load_from_cache(options.model, "config.json", revision=options.revision), str):
            HfApi().model_info(options.model, revision=options.revision, timeout=10)
    except Exception as error:  # of the hub's, of HTTP's and of the network's many kinds
        raise ScorerLoadError(
            f"model {options.model!r} is neither a folder nor to be had from the Hugging Face hub: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _device(name: str) -> str:
    try:
        import torch  # noqa: PLC0415 - only where it runs
    except ImportError as error:
        raise ScorerLoadError(f"type classifier needs torch ({error}): pip install 'grpo-plugin[server]'") from error
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(name.partition(":")[2] or 0) >= count:
            raise ScorerLoadError(f"device {name!r}: torch sees {count} CUDA devices; set device: auto or cpu")
    return name


def _load(source: str, options: ModelOptions, per_token: bool) -> tuple[Any, Any]:
    """Model and tokenizer. A head without trained weights is refused: its scores would be noise."""
    try:
        import transformers  # noqa: PLC0415 - only where it runs

        kind = f"AutoModelFor{'Token' if per_token else 'Sequence'}Classification"
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=options.revision)
        model, report = getattr(transformers, kind).from_pretrained(
            source, revision=options.revision, dtype=options.dtype, output_loading_info=True
        )
    except ImportError as error:
        raise ScorerLoadError(
            f"type classifier needs transformers ({error}): pip install 'grpo-plugin[server]'"
        ) from error
    except (OSError, ValueError) as error:  # how transformers reports names, files and configs that it cannot use
        raise ScorerLoadError(f"model {options.model!r} cannot be loaded: {_first_line(error)}") from error
    except Exception as error:
        raise ScorerLoadError(f"model {options.model!r}: loading it raised\n{user_traceback(error)}") from error
    if missing := sorted(report["missing_keys"]):
        of_what, by_what = ("process ", "token") if per_token else ("", "sequence")
        raise ScorerLoadError(
            f"model {options.model!r} is no {of_what}reward model: its checkpoint has no weights for "
            f"{', '.join(missing[:3])}; give one that was trained for {by_what} classification"
        )
    return model, tokenizer


def _set_pad_token(model: Any, tokenizer: Any, name: str) -> None:
    """As TRL: the model scores the last token that is no padding, so it must know which that is."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ScorerLoadError(f"model {name!r}: its tokenizer has neither a padding nor an end token; give it one")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _label_index(config: Any, options: ModelOptions) -> int:
    names = {str(name): int(index) for index, name in config.id2label.items()}
    if options.label is None and config.num_labels == 1:
        return 0
    if options.label in names:
        return names[str(options.label)]
    if isinstance(options.label, int) and 0 <= options.label < config.num_labels:
        return options.label
    hint = did_you_mean(str(options.label), names)
    raise ScorerLoadError(
        f"label {options.label!r}{hint} model {options.model!r} has {config.num_labels} labels; set label to one of "
        f"{', '.join(names)}, or to an index"
    )


def _positions(config: Any) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _folder_digest(folder: Path) -> str:
    """Of the configuration and of each weights file's size, first and last MiB: training moves all of them."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".json", ".jinja"):
            with file.open("rb") as stream:
                size = file.stat().st_size
                digest.update(json.dumps([file.name, size]).encode() + stream.read(_SAMPLE_BYTES))
                stream.seek(max(0, size - _SAMPLE_BYTES))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
