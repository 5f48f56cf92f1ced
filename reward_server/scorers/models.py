"""A loaded Hugging Face model on its devices: the form of its rows, the forward pass, and torch.compile.

Owns the copies of the model and the steps of a batch through one of them: `assemble` on the host, `launch` on a device,
`read` of the outputs. Which form rows have, packed or padded, a trial finds when the model is loaded. Knows nothing of
where a model comes from (`model_loading`), nor of what its output means: a scorer says how the output is read.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from reward_server.errors import ScorerLoadError
from reward_server.scorers.model_loading import ModelOptions, Task, device_of, first_line, load_model

if TYPE_CHECKING:
    from reward_server.scorers.model_batches import HostBatch, Outputs
    from reward_server.scorers.model_trial import Choice, Form
    from reward_server.scorers.packed_backbone import PackedBackbone

log = logging.getLogger("reward_server")

T = TypeVar("T")

Read = Callable[[Any, Sequence[int]], Any]
"""From a model's output, and the lengths of its rows, to a tensor."""

# What a compiled model meets before it serves: one row and several, each of two lengths, are all the cases it makes.
_SHAPES = ((2, 8), (3, 24), (1, 16), (1, 32))


class Models:
    """A loaded model, one copy for each device, and its tokenizer."""

    def __init__(self, options: ModelOptions, task: Task, read: Read, most_tokens: int | None = None):
        """`most_tokens` is the length beyond which no row will be computed. Raises ScorerLoadError."""
        devices = [device_of(device) for device in options.devices or (options.device,)]
        model, self.tokenizer, self.version = load_model(options, task)
        # The last device takes the model that was read. A model may keep state of a forward pass, so each has its own.
        self.replicas = [copy.deepcopy(model).to(device) for device in devices[:-1]] + [model.to(devices[-1])]
        self.config = model.config
        self.positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._read = read
        self._is_compiled = bool(options.compile)
        self._on_gpu = all(device.startswith("cuda") for device in devices)
        self._backbones: list[PackedBackbone] = []
        for replica in range(len(self.replicas)):
            self.prepare(replica)
        self.choice = self._chosen_form(options.name, most_tokens)
        if self._is_compiled:
            self._compile(options)

    def __len__(self) -> int:
        """The number of copies."""
        return len(self.replicas)

    def prepare(self, replica: int) -> None:
        """What a subclass does to a copy before it is used."""

    def compiled_part(self, model: Any) -> Any:
        """The part of a copy that torch.compile compiles."""
        return model

    # ------------------------------------------------------------------------------------------------ the forward pass

    def passes(self, rows: Sequence[T]) -> Iterator[Sequence[T]]:
        """The rows of a batch by forward pass: all in one, unless each has to be alone."""
        yield from ([row] for row in rows) if self.choice.form == "alone" else [rows]

    def assemble(
        self, ids: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]] = (), form: Form | None = None
    ) -> HostBatch:
        """The rows of one forward pass, on the host. `wanted` are the positions of each row that a subclass reads."""
        from reward_server.scorers.model_batches import HostBatch  # noqa: PLC0415 - only where it runs

        packed = (form or self.choice.form) == "packed"
        length = self._padded_length(max(map(len, ids)))
        pad_id, on_gpu = self.tokenizer.pad_token_id, self._on_gpu
        return HostBatch.of(ids, wanted, length, pad_id, packed=packed, few_shapes=on_gpu, pinned=on_gpu)

    def launch(self, batch: HostBatch, replica: int, then: Callable[[Any], Any] = lambda values: values) -> Outputs:
        """Starts the forward pass: its outputs are what `then` makes on the device of what `read` makes, in float32."""
        import torch  # noqa: PLC0415 - only where it runs

        try:
            return self._forward(batch, replica, then)
        except torch.OutOfMemoryError as error:
            message = first_line(error)
        # Raised anew: the first one's traceback would keep the batch in memory while its halves are tried.
        torch.cuda.empty_cache()
        raise MemoryError(message)

    def outputs(self, ids: Sequence[Sequence[int]], replica: int, form: Form | None = None) -> Any:
        """What `read` makes of the model's output for these rows, in float32 and on the host."""
        return self.launch(self.assemble(ids, self.wanted(ids), form), replica).read()

    def wanted(self, ids: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """The positions of each row that a subclass reads, unless a scorer asks for others."""
        return ()

    def _forward(self, batch: HostBatch, replica: int, then: Callable[[Any], Any]) -> Outputs:
        import torch  # noqa: PLC0415 - only where it runs

        from reward_server.scorers.model_batches import Outputs  # noqa: PLC0415

        model = self.replicas[replica]
        with torch.inference_mode():
            on_device = batch.to(model.device, self._backbones[replica].first_position if self._backbones else 0)
            self.use_wanted(on_device.wanted_K, replica)
            inputs = {"input_ids": on_device.ids_NL, "attention_mask": on_device.mask_NL}
            if on_device.packed is None:
                output = model(**inputs)
            else:
                with self._backbones[replica].packing(on_device.packed):
                    output = model(**inputs)
            return Outputs(then(self._read(output, batch.lengths).float()))

    def use_wanted(self, wanted_K: Any, replica: int) -> None:
        """Where the positions that are read lie in the flattened batch that comes next."""

    def _padded_length(self, longest: int) -> int:
        """The tokens of each padded row. On a GPU, whose memory and kernels go by shape, few different numbers."""
        from reward_server.scorers.model_batches import few_lengths  # noqa: PLC0415 - only where it runs

        if self._is_compiled:
            return 2 if longest == 1 else longest  # length 1 is a case of its own, never compiled
        if not self._on_gpu:
            return longest
        return max(longest, min(few_lengths(longest), self.positions or few_lengths(longest)))

    # ------------------------------------------------------------------------------------------------------ when loaded

    def _chosen_form(self, name: str, most_tokens: int | None) -> Choice:
        import torch  # noqa: PLC0415 - only where it runs

        from reward_server.scorers.model_trial import Trial  # noqa: PLC0415
        from reward_server.scorers.packed_backbone import PackedBackbone  # noqa: PLC0415

        never_packed = "compile is set" if self._is_compiled else ""
        try:
            self._backbones = [PackedBackbone(model) for model in self.replicas]
            if self.positions is not None:
                self.positions -= self._backbones[0].first_position
        except Exception as error:
            never_packed = never_packed or first_line(error)
        model, limits = self.replicas[0], [limit for limit in (most_tokens, self.positions) if limit]
        config, known = model.config.get_text_config(), len(self.tokenizer)
        trial = Trial(
            self._numbers,
            config,
            torch.device(model.device),
            set(model.modules()),
            half=model.dtype in (torch.float16, torch.bfloat16),
            vocabulary=min(known, getattr(config, "vocab_size", None) or known),  # either may be the smaller one
            most_tokens=min(limits, default=None),
        )
        choice: Choice = trial.choice(never_packed)
        log.log(logging.WARNING if choice.form == "alone" else logging.INFO, "scorer %r: %s", name, choice)
        return choice

    def _numbers(self, form: Form, rows: list[list[int]]) -> list[Any]:
        """All numbers of each row, for the trial."""
        values = self.outputs(rows, 0, form)
        return [value[: len(row)] if values.ndim == 3 else value for value, row in zip(values, rows, strict=True)]

    def _compile(self, options: ModelOptions) -> None:
        try:
            for replica, model in enumerate(self.replicas):
                backend = "inductor" if options.compile is True else options.compile
                self.compiled_part(model).compile(dynamic=True, backend=backend)
                for rows, tokens in _SHAPES:
                    self.outputs([[0] * tokens] * rows, replica)
        except Exception as error:
            raise ScorerLoadError(
                f"model {options.model!r} cannot be compiled: {first_line(error)}; set compile: false"
            ) from error
