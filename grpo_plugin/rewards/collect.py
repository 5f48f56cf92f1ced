"""Submits a step's groups, collects their scores, and exchanges them between ranks.

Owns the calls in flight, the step's deadline and the exchange after which every rank holds the same `Outcome`. Knows
nothing of TRL, and does not judge an outcome.

Where this stands in a step of the trainer (trainer/remote.py):

    _generate                          completions exist
    whole_groups, make_group           rows → groups                                        groups.py
    submit → arrived → exchange        groups → Outcome, equal on every rank                this file
    policy.drops(outcome.failed_BGS)   what is dropped because of a failed score            policies.py
    drop_failed                        rewards without what is dropped                      survivors.py
    TRL                                rewards → advantages

    pending = submit(client, groups, timeout_s=300)
    ...                                                      log-probabilities, while the service scores
    await pending.arrived()                                  at most until the deadline
    outcome = exchange(pending, layout, scorers, gather)     equal on every rank
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from grpo_plugin.rewards.groups import GroupLayout
from grpo_plugin.rewards.outcome import Answer, CallFailure, Outcome
from reward_server.client import RewardClient
from reward_server.errors import DeadlineError
from reward_server.types import Group, GroupScores

# gRPC ends a call at its deadline; this is how much later a rank gives up on gRPC itself.
_SLACK_S = 5.0


@dataclass(slots=True)
class Pending:
    """The groups of one step that this rank submitted, by their number in the global batch."""

    futures: dict[int, Future[GroupScores]]
    submitted_at: float
    deadline: float
    exposed_wait_s: float = 0.0
    latency_s: float = 0.0

    async def arrived(self) -> None:
        """Waits until every call has ended, at most until the deadline; the time it takes is the exposed wait."""
        began = time.perf_counter()
        waiting = [asyncio.wrap_future(future) for future in self.futures.values() if not future.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=max(0.0, self.deadline + _SLACK_S - time.monotonic()))
        for future in waiting:
            if future.done() and not future.cancelled():
                future.exception()  # `_answer` reads it from the original; asyncio would report this one as unread
        # One reward function for each scorer waits here at the same time: that is one wait, not several.
        self.exposed_wait_s = max(self.exposed_wait_s, time.perf_counter() - began)

    def answers(self) -> dict[int, Answer]:
        """What became of each group. Does not wait: a call that has not ended by now is cancelled and has no answer."""
        return {number: self._answer(future) for number, future in self.futures.items()}

    def _answer(self, future: Future[GroupScores]) -> Answer:
        try:
            return future.result(timeout=0)
        except Exception as error:  # of whatever kind: this rank must not be the only one that raises
            if not future.done():
                future.cancel()
                waited_s = time.monotonic() - self.submitted_at
                return CallFailure(DeadlineError.__name__, f"no answer within {waited_s:.1f} s")
            return CallFailure(type(error).__name__, str(error))

    def cancel(self) -> None:
        """Ends the calls that are still in flight, on the server too."""
        for future in self.futures.values():
            future.cancel()


def submit(client: RewardClient, groups: Mapping[int, Group], *, timeout_s: float) -> Pending:
    """Sends every group and returns at once. A group that cannot be sent has failed; nothing is raised."""
    now = time.monotonic()
    sent = client.submit_all(list(groups.values()), timeout_s=timeout_s)
    pending = Pending(dict(zip(groups, sent, strict=True)), submitted_at=now, deadline=now + timeout_s)
    for future in sent:
        future.add_done_callback(lambda _: _note_latency(pending))
    return pending


def _note_latency(pending: Pending) -> None:
    pending.latency_s = max(pending.latency_s, time.monotonic() - pending.submitted_at)


def exchange(
    pending: Pending, layout: GroupLayout, scorers: Sequence[str], gather: Callable[[list[Any]], list[Any]]
) -> Outcome:
    """Gives every rank the answers of all ranks. `gather` concatenates a list over the ranks; each calls it once."""
    mine = (pending.answers(), pending.latency_s, pending.exposed_wait_s)
    parts = gather([mine])
    return Outcome(
        answers={number: answer for answers, _, _ in parts for number, answer in answers.items()},
        layout=layout,
        scorers=scorers,
        latency_s=max(latency_s for _, latency_s, _ in parts),
        exposed_wait_s=max(wait_s for _, _, wait_s in parts),
    )
