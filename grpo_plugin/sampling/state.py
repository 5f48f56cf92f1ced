"""What dynamic sampling keeps from batch to batch, and of that what a checkpoint keeps. The same on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_plugin.sampling.group_filters import GroupFilter
from grpo_plugin.sampling.prompt_stream import PromptStream
from grpo_plugin.sampling.refill import Filling, PassShare, Round, Spare


class Sampling:
    """The stream of prompts, the share of groups that was kept lately, the surplus, and what is under way."""

    def __init__(self, stream: PromptStream, group_filter: GroupFilter):
        self.stream = stream
        self.filter = group_filter
        self.share = PassShare()
        self.surplus: list[Spare] = []
        self.in_flight: list[Round] = []  # sampled for a batch that was full without them
        self.begun: Filling | None = None  # with score_ahead: the batch that is scored while another is trained on

    def use_surplus(self, filling: Filling, now: int, max_age: int) -> None:
        """Hands the surplus to a batch, as far as it is not too old by then."""
        self.drop_old(now, max_age)
        filling.spares[:0], self.surplus = self.surplus, []
        filling.in_flight.extendleft(reversed(self.in_flight))
        self.in_flight = []

    def drop_old(self, now: int, max_age: int) -> None:
        """Keeps of the surplus what is at most `max_age` optimizer steps old at the step `now`.

        Prompts of which no scores have come by then go back into the stream.
        """
        self.surplus = [spare for spare in self.surplus if now - spare.step <= max_age]
        for round_ in self.in_flight:
            if now - round_.step > max_age:
                round_.cancel()
                self.stream.give_back(round_.indices_B)
        self.in_flight = [round_ for round_ in self.in_flight if now - round_.step <= max_age]

    def cancel(self) -> None:
        """Ends the calls that are in flight."""
        for round_ in self.in_flight:
            round_.cancel()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: prompts whose groups were sampled and not trained on come again."""
        begun = self.begun
        spares = self.surplus if begun is None else [*self.surplus, *begun.spares]
        rounds = self.in_flight if begun is None else [*self.in_flight, *begun.in_flight]
        unused = [spare.index for spare in spares] + [index for round_ in rounds for index in round_.indices_B]
        return {"stream": self.stream.state(unused), "share": self.share.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint's state."""
        self.stream.load(state["stream"])
        self.share.load(state["share"])
