"""The scorer `relevance`: how near a completion is in meaning to its prompt, or to a reference text in a column.

Owns the embedding model (sentence-transformers), which texts are compared, and what happens to a text that is too long.
Knows nothing of queues: it gets one group at a time, and embeds each of its texts once, in batches of similar lengths.

The score is the similarity of two embeddings: by default their cosine, from -1 to 1. With real models it is mostly
between 0 and 1, and near 0 for unrelated texts. A policy that is rewarded for similarity to its prompt alone learns to
repeat the prompt, so use this scorer beside others.

Legend: G completions of a group, U different texts, D numbers of an embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from reward_server.errors import ScorerLoadError
from reward_server.scorers.base import ExecutorKind, Result, ScorerOptions, text_of, to_score
from reward_server.scorers.columns import ColumnScorer
from reward_server.scorers.loading import user_traceback
from reward_server.scorers.model_loading import first_line, folder_digest, source_of
from reward_server.types import Content, Group, Score, Status


class RelevanceOptions(ScorerOptions):
    """Options of `relevance`."""

    model: str = Field(min_length=1, description="A sentence-transformers model: name on the hub, or path of a folder.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    column: str | None = Field(
        None,
        description="Column with the reference text, or a list of them of which the most similar counts; null is not "
        "applicable. Unset, the reference is the prompt; of messages, the user's last one.",
    )
    similarity: Literal["cosine", "dot"] = Field("cosine", description="cosine, or the dot product.")
    completion_prefix: str = Field(
        "", description="Text before each completion, for models that were trained with such a prefix."
    )
    reference_prefix: str = Field("", description="Text before each reference, such as 'query: '.")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="auto (a GPU if there is one), cpu, cuda, cuda:0…"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights; auto is the checkpoint's."
    )
    batch_size: int = Field(32, ge=1, description="Most texts of one forward pass; all of one group.")
    max_length: int | None = Field(
        None, ge=3, description="Most tokens of a text, the model's own marks included; the model's setting if unset."
    )
    truncate: Literal["error", "left", "right"] = Field(
        "error",
        description="What happens to a text that is longer than max_length. error: the score is FAILED. left: its "
        "start is cut off. right: its end is cut off. The metric <name>/truncated is the share of a group that was "
        "cut.",
    )


class RelevanceScorer(ColumnScorer[RelevanceOptions]):
    """The similarity of each completion to its reference. It does not depend on the rest of the group (to 1e-5 in
    float32, else to the precision of `dtype`). Its version names model, weights, precision, truncation and library."""

    Options = RelevanceOptions
    place = ExecutorKind.THREAD

    def __init__(self, options: RelevanceOptions):
        super().__init__(options)
        self._model: Any = None

    @property
    def concurrency(self) -> int:
        return 1

    def load(self) -> None:
        source = source_of(self.options.model, self.options.base_dir)
        self._model = _load(source, self.options)
        if self.options.max_length is not None:
            _check_positions(self._model, self.options)
            self._model.max_seq_length = self.options.max_length
        if self.options.truncate != "error":
            self._model.tokenizer.truncation_side = self.options.truncate
        self._version = _version_of(self._model, source, self.options)

    def score(self, group: Group) -> Result:
        texts = [self.options.completion_prefix + text_of(content) for content in group.contents()]
        references = self._references(group)
        lengths = self._lengths([*texts, *(text for several in references for text in several)])
        scores = [self._without_model(*pair, lengths) for pair in zip(texts, references, strict=True)]
        open_rows = [row for row, score in enumerate(scores) if score is None]
        values = self._similarities([(texts[row], references[row]) for row in open_rows])
        for row, value in zip(open_rows, values, strict=True):
            scores[row] = to_score(value)
        cut = [self._is_long(max(map(lengths.__getitem__, [t, *r]))) for t, r in zip(texts, references, strict=True)]
        metrics = {} if self.options.truncate == "error" else {f"{self.name}/truncated": sum(cut) / len(cut)}
        return Result(tuple(score for score in scores if score is not None), metrics)

    def close(self) -> None:
        self._model = None

    def _references(self, group: Group) -> list[list[str]]:
        """The texts that each completion is compared with, G long; an empty list where there is none."""
        if self.options.column is None:
            values: list[Any] = [_last_question(prompt) for prompt in group.prompts()]
        else:
            values = self.column(group, self.options.column)
        several = [value if isinstance(value, list) else [value] for value in values]
        return [[self.options.reference_prefix + str(v) for v in value if v is not None] for value in several]

    def _lengths(self, texts: Sequence[str]) -> dict[str, int]:
        """Tokens of each different text, the model's own marks included."""
        different = list(dict.fromkeys(texts))
        encoded = self._model.tokenizer(different, truncation=False, verbose=False)["input_ids"]
        return {text: len(ids) for text, ids in zip(different, encoded, strict=True)}

    def _is_long(self, length: int) -> bool:
        return self._model.max_seq_length is not None and length > self._model.max_seq_length

    def _without_model(self, text: str, references: Sequence[str], lengths: Mapping[str, int]) -> Score | None:
        """The score of a completion that needs no model; None if it needs the model."""
        if not references:
            return Score(Status.NOT_APPLICABLE)
        if self.options.truncate == "error":
            for what, one in (("the completion", text), *(("the reference", reference) for reference in references)):
                if self._is_long(lengths[one]):
                    return Score(
                        Status.FAILED,
                        message=f"{what} has {lengths[one]} tokens, beyond max_length ({self._model.max_seq_length}); "
                        "raise it as far as the model goes, or set truncate to left or right",
                    )
        return None

    def _similarities(self, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
        """For each pair, the similarity of the text to the most similar of its references."""
        rows = {text: None for text, references in pairs for text in (text, *references)}
        if not rows:
            return []
        embeddings_UD = self._model.encode(
            list(rows),
            prompt="",  # a default one of the model's would go before references and completions alike
            batch_size=self.options.batch_size,
            normalize_embeddings=self.options.similarity == "cosine",
            convert_to_tensor=True,
            show_progress_bar=False,
        ).float()
        index = {text: row for row, text in enumerate(rows)}
        return [
            float((embeddings_UD[[index[one] for one in references]] @ embeddings_UD[index[text]]).max())
            for text, references in pairs
        ]


def _last_question(prompt: Content) -> str:
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message.get("role") == "user"] or list(prompt)
    return text_of([{"role": "assistant", "content": asked[-1].get("content")}]) if asked else ""


# -------------------------------------------------------------------------------------------------------------- loading


def _load(source: str, options: RelevanceOptions) -> Any:
    try:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - only where it runs
    except ImportError as error:
        raise ScorerLoadError(
            f"type relevance needs sentence-transformers ({error}): pip install 'grpo-plugin[relevance]'"
        ) from error
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    device = None if options.device == "auto" else options.device
    try:
        model = SentenceTransformer(
            source, device=device, revision=options.revision, model_kwargs={"dtype": options.dtype}
        )
    except (OSError, ValueError, AssertionError) as error:  # names, files, configurations and devices it cannot use
        raise ScorerLoadError(f"model {options.model!r} cannot be loaded: {first_line(error)}") from error
    except Exception as error:
        raise ScorerLoadError(f"model {options.model!r}: loading it raised\n{user_traceback(error)}") from error
    return model.eval()


def _check_positions(model: Any, options: RelevanceOptions) -> None:
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and options.max_length is not None and options.max_length > positions:
        raise ScorerLoadError(
            f"max_length ({options.max_length}): model {options.model!r} has positions for {positions} tokens"
        )


def _version_of(model: Any, source: str, options: RelevanceOptions) -> str:
    import sentence_transformers  # noqa: PLC0415

    folder = Path(source)
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    commit = getattr(config, "_commit_hash", None) or options.revision or "main"
    weights = folder_digest(_files(folder), folder) if folder.is_dir() else commit
    cut = f"{model.max_seq_length}{options.truncate}"
    name, library = folder.name, f"sentence-transformers-{sentence_transformers.__version__}"
    return f"{name}@{weights[:12]}/{model.dtype}/{cut}/{library}".replace("torch.", "")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md"]
