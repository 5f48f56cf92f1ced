"""What dynamic sampling keeps from batch to batch, and of that what a checkpoint keeps. The same on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_plugin.sampling.group_filters import GroupFilter
from grpo_plugin.sampling.prompt_stream import PromptStream
from grpo_plugin.sampling.refill import Filling, PassShare, Spare


class Sampling:
    """The stream of prompts, the share of groups that was kept lately, the surplus, and what is under way."""

    def __init__(self, stream: PromptStream, group_filter: GroupFilter):
        self.stream = stream
        self.filter = group_filter
        self.share = PassShare()
        self.surplus: list[Spare] = []
        self.begun: Filling | None = None  # with score_ahead: the batch that is scored while another is trained on

    def use_surplus(self, filling: Filling, now: int, max_age: int) -> None:
        """Hands the surplus to a batch, as far as it is not too old by then."""
        self.drop_old(now, max_age)
        filling.spares[:0], self.surplus = self.surplus, []

    def drop_old(self, now: int, max_age: int) -> None:
        """Keeps of the surplus what is at most `max_age` optimizer steps old at the step `now`."""
        self.surplus = [spare for spare in self.surplus if now - spare.step <= max_age]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: prompts whose groups were sampled and not trained on come again."""
        unused = [spare.index for spare in self.surplus]
        if self.begun is not None:
            unused += [spare.index for spare in self.begun.spares] + list(self.begun.unused_indices())
        return {"stream": self.stream.state(unused), "share": self.share.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint's state."""
        self.stream.load(state["stream"])
        self.share.load(state["share"])
