"""The scorer `classifier`: a Hugging Face sequence-classification model as reward model.

Owns the model, its tokenizer and the making of batches. The text of a completion is what trl 1.16's
GRPOTrainer._calculate_rewards gives a reward model: the chat template over prompt and completion if they are messages,
their concatenation if they are text; no special tokens are added. Knows nothing of queues: it gets a group at a time.

Legend: G completions of a group, T tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import Place, Result, Scorer, ScorerOptions, to_score
from reward_server.scorers.loading import did_you_mean, find_path, user_traceback
from reward_server.types import Content, Group, Score, Status

_SAMPLE_BYTES = 1 << 20


class ClassifierOptions(ScorerOptions):
    """Options of `classifier`."""

    model: str = Field(min_length=1, description="Name on the Hugging Face hub, or path of a folder.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    label: int | str | None = Field(
        None, description="Index or name of the label whose logit is the score; needed if the model has several."
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto (a GPU if there is one), cpu, cuda, cuda:0…"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights; auto is the checkpoint's."
    )
    max_length: int | None = Field(
        None, ge=1, description="Most tokens of prompt and completion; what the model's positions allow if unset."
    )
    truncate: Literal["error", "left", "right"] = Field(
        "error",
        description="What becomes of a text beyond max_length. error: it gets no score but FAILED. left: the start of "
        "the prompt is cut off. right: the end of the completion is.",
    )
    max_batch_tokens: int = Field(
        16384, ge=1, description="Tokens of one forward pass, padding included; a longer text goes alone."
    )
    chat_template_kwargs: dict[str, JsonValue] = Field(
        default_factory=dict, description="Passed to the tokenizer's apply_chat_template, such as enable_thinking."
    )


class ClassifierScorer(Scorer[ClassifierOptions]):
    """The model's logit for each completion, the same whatever else is in the batch (to the precision of `dtype`)."""

    Options = ClassifierOptions
    place = Place.THREAD

    def __init__(self, options: ClassifierOptions):
        super().__init__(options)
        self._tokenizer: Any = None
        self._model: Any = None
        self._label = 0
        self._max_length: int | None = options.max_length
        self._version = ""

    @property
    def version(self) -> str:
        """Model, weights, precision and what is cut off. Known once loaded."""
        return self._version

    @property
    def concurrency(self) -> int:
        return 1

    def load(self) -> None:
        source = _source(self.options)
        device = _device(self.options)
        self._model, self._tokenizer = _load(source, self.options)
        self._model.to(device).eval().requires_grad_(False)
        _set_pad_token(self._model, self._tokenizer, self.options.model)
        self._label = _label_index(self._model.config, self.options)
        self._max_length = self.options.max_length or _positions(self._model.config)
        self._version = self._version_of(source)

    def score(self, group: Group) -> Result:
        texts = [self._text(*both) for both in zip(group.prompts(), group.contents(), strict=True)]
        encoded = self._tokenizer(text=texts, add_special_tokens=False)
        rows = [{key: values[index] for key, values in encoded.items()} for index in range(len(texts))]
        scores = [self._too_long(len(row["input_ids"])) for row in rows]
        kept = [index for index, score in enumerate(scores) if score is None]
        logits = self._logits([self._truncated(rows[index]) for index in kept])
        for index, logit in zip(kept, logits, strict=True):
            scores[index] = to_score(logit)
        return Result(tuple(score for score in scores if score is not None))

    def close(self) -> None:
        self._model = self._tokenizer = None

    def _text(self, prompt: Content, completion: Content) -> str:
        if isinstance(prompt, str) and isinstance(completion, str):
            return prompt + completion
        if isinstance(prompt, str) or isinstance(completion, str):
            raise ValueError("prompt and completion must both be text or both be messages")
        messages = [dict(message) for message in (*prompt, *completion)]
        return self._tokenizer.apply_chat_template(messages, tokenize=False, **self.options.chat_template_kwargs)

    def _too_long(self, length: int) -> Score | None:
        if self.options.truncate != "error" or self._max_length is None or length <= self._max_length:
            return None
        return Score(
            Status.FAILED,
            message=f"{length} tokens of prompt and completion are beyond max_length ({self._max_length}); raise it, "
            "or set truncate to left or right",
        )

    def _truncated(self, row: dict[str, list[int]]) -> dict[str, list[int]]:
        if self._max_length is None or self.options.truncate == "error":
            return row
        keep = slice(-self._max_length, None) if self.options.truncate == "left" else slice(self._max_length)
        return {key: values[keep] for key, values in row.items()}

    def _logits(self, rows: Sequence[dict[str, list[int]]]) -> list[float]:
        """One a row, in the rows' order; batches are of like lengths."""
        import torch  # noqa: PLC0415 - only where it runs

        logits = [0.0] * len(rows)
        lengths = [len(row["input_ids"]) for row in rows]
        for batch in batches(lengths, self.options.max_batch_tokens):
            padded = self._tokenizer.pad(
                [rows[index] for index in batch], padding=True, padding_side="right", return_tensors="pt"
            )
            with torch.inference_mode():
                values = self._model(**padded.to(self._model.device)).logits[:, self._label].float().tolist()
            for index, value in zip(batch, values, strict=True):
                logits[index] = value
        return logits

    def _version_of(self, source: str) -> str:
        commit = getattr(self._model.config, "_commit_hash", None)
        weights = _folder_digest(Path(source)) if os.path.isdir(source) else commit or self.options.revision or "main"
        cut = f"{self._max_length}{self.options.truncate}"
        return f"{Path(self.options.model).name}@{weights[:12]}/{self._model.dtype}/{cut}".replace("torch.", "")


def batches(lengths: Sequence[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows in batches, the longest rows first; a batch padded to its longest row keeps to the limit."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


# -------------------------------------------------------------------------------------------------------------- loading


def _source(options: ClassifierOptions) -> str:
    """The folder if there is one, else the name on the hub."""
    folder = find_path(options.model, options.base_dir)
    if folder is not None:
        return str(folder)
    if options.model.startswith((".", "/", "~")) or options.model.count("/") > 1:
        raise ScorerLoadError(f"model {options.model!r}: there is no such folder; give a folder or a name on the hub")
    _ask_hub(options)
    return options.model


def _ask_hub(options: ClassifierOptions) -> None:
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


def _device(options: ClassifierOptions) -> str:
    try:
        import torch  # noqa: PLC0415 - only where it runs
    except ImportError as error:
        raise ScorerLoadError(f"type classifier needs torch ({error}): pip install 'grpo-plugin[server]'") from error
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if options.device.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(options.device.partition(":")[2] or 0) >= count:
            raise ScorerLoadError(
                f"device {options.device!r}: torch sees {count} CUDA devices; set device: auto or cpu"
            )
    return options.device


def _load(source: str, options: ClassifierOptions) -> tuple[Any, Any]:
    """Model and tokenizer. A head without trained weights is refused: its scores would be noise."""
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: PLC0415

        tokenizer = AutoTokenizer.from_pretrained(source, revision=options.revision)
        model, report = AutoModelForSequenceClassification.from_pretrained(
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
        raise ScorerLoadError(
            f"model {options.model!r} is no reward model: its checkpoint has no weights for {', '.join(missing[:3])}; "
            "give one that was trained for sequence classification"
        )
    return model, tokenizer


def _set_pad_token(model: Any, tokenizer: Any, name: str) -> None:
    """As TRL: the model scores the last token that is no padding, so it must know which that is."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ScorerLoadError(f"model {name!r}: its tokenizer has neither a padding nor an end token; give it one")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _label_index(config: Any, options: ClassifierOptions) -> int:
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
