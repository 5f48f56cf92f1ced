"""A loaded Hugging Face model on its devices: padding, the forward pass, and torch.compile.

Owns the copies of the model and what goes into them. Knows nothing of where a model comes from (`model_loading`), nor
of what its output means: a scorer says how the output is read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from reward_server.errors import ScorerLoadError
from reward_server.scorers.model_loading import ModelOptions, Task, device_of, first_line, load_model

Read = Callable[[Any, Sequence[Sequence[int]]], Any]
"""From a model's output, and the token ids of its rows, to a tensor."""

# What a compiled model meets before it serves: one row and several, each of two lengths, are all the cases it makes.
_SHAPES = ((2, 8), (3, 24), (1, 16), (1, 32))


class Models:
    """A loaded model, one copy for each device, and its tokenizer."""

    def __init__(self, options: ModelOptions, task: Task, read: Read):
        """Raises ScorerLoadError."""
        devices = [device_of(device) for device in options.devices or (options.device,)]
        model, self.tokenizer, self.version = load_model(options, task)
        # The last device takes the model that was read. A model may keep state of a forward pass, so each has its own.
        self.replicas = [copy.deepcopy(model).to(device) for device in devices[:-1]] + [model.to(devices[-1])]
        self.config = model.config
        self.positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._read = read
        self._is_compiled = bool(options.compile)
        for replica in range(len(self.replicas)):
            self.prepare(replica)
        if self._is_compiled:
            self._compile(options)

    def __len__(self) -> int:
        """The number of copies."""
        return len(self.replicas)

    def prepare(self, replica: int) -> None:
        """What a subclass does to a copy before it is compiled."""

    def compiled_part(self, model: Any) -> Any:
        """The part of a copy that torch.compile compiles."""
        return model

    def outputs(self, ids: Sequence[Sequence[int]], replica: int) -> Any:
        """What `read` makes of the model's output, in float32. Rows are padded on the right."""
        import torch  # noqa: PLC0415 - only where it runs

        try:
            return self._forward(ids, self.replicas[replica])
        except torch.OutOfMemoryError as error:
            message = first_line(error)
        # Raised anew: the first one's traceback would keep the batch in memory while its halves are tried.
        torch.cuda.empty_cache()
        raise MemoryError(message)

    def padded_length(self, ids: Sequence[Sequence[int]]) -> int:
        """The number of tokens of each row in the forward pass of these rows."""
        longest = max(len(row) for row in ids)
        return 2 if self._is_compiled and longest == 1 else longest  # length 1 is a case of its own, never compiled

    def _forward(self, ids: Sequence[Sequence[int]], model: Any) -> Any:
        import torch  # noqa: PLC0415 - only where it runs

        shape = (len(ids), self.padded_length(ids))
        padded_NT = torch.full(shape, self.tokenizer.pad_token_id, dtype=torch.long)
        for index, row in enumerate(ids):
            padded_NT[index, : len(row)] = torch.tensor(row)
        mask_NT = torch.arange(shape[1]) < torch.tensor([len(row) for row in ids])[:, None]
        with torch.inference_mode():
            output = model(input_ids=padded_NT.to(model.device), attention_mask=mask_NT.long().to(model.device))
            return self._read(output, ids).float()

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
