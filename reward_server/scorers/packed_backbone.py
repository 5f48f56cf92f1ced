"""Packed rows in the layers of a model whose head sees padded rows.

A model is a backbone of layers, which take nearly all of its time, and a head that pools and scores. The head is given
padded ids, and padded hidden states; in between the backbone computes the same rows packed. So every head works as it
is: one that takes the last token, the first, a mean under the mask, or every token.

Owns the hooks on the backbone. Knows nothing of how rows are packed, nor of whether a model can: a trial decides.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from reward_server.scorers.model_batches import PackedRows


class PackedBackbone:
    """The hooks of one model. Used by one thread at a time."""

    def __init__(self, model: Any):
        """Raises NotImplementedError if the model's layers are not apart from its head."""
        backbone = model.base_model
        if backbone is model:
            raise NotImplementedError("its layers are not apart from its head (base_model)")
        self._names = list(inspect.signature(backbone.forward).parameters)
        self._rows: PackedRows | None = None
        padding_idx = getattr(getattr(backbone, "embeddings", None), "padding_idx", None)
        self.first_position = 0 if padding_idx is None else padding_idx + 1
        """RoBERTa and its kin count positions from the padding token's id."""
        backbone.register_forward_pre_hook(self._pack, with_kwargs=True)
        backbone.register_forward_hook(self._unpack)

    @contextlib.contextmanager
    def packing(self, rows: PackedRows | None) -> Iterator[None]:
        """Inside, the model is called with padded rows, and its backbone computes these."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def _pack(self, backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._rows is None:
            return None
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        return (), {**given, **self._rows.inputs}

    def _unpack(self, backbone: Any, args: tuple[Any, ...], output: Any) -> Any:
        if self._rows is None:
            return None
        if not hasattr(output, "last_hidden_state"):
            raise NotImplementedError(f"its layers return {type(output).__name__}, without last_hidden_state")
        output.last_hidden_state = self._rows.unpacked(output.last_hidden_state)
        if getattr(output, "pooler_output", None) is not None:  # of the first row's first token alone
            output.pooler_output = backbone.pooler(output.last_hidden_state)
        return output
