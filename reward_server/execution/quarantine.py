"""Which completions have cost worker processes their lives, so that none does so for ever.

Owns the count, by content and in bounded memory. Knows nothing of processes: it is told what became of a group.

    quarantine.refuse(group)                    raises NoResultError for a group that has killed twice
    quarantine.note(group, failure)             a failure, or None for a score
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from reward_server.execution.results import NoResultError
from reward_server.types import Group, Status

_MOST_DEATHS = 2
# A key and its count come to about 200 bytes. Beyond this the one that is longest unseen is let go.
_MOST_KNOWN = 10_000


class Quarantine:
    """One scorer's. A score clears those that it is of.

    A death that several completions share makes each of them a suspect, however often it happens: one that is guilty
    dies once more when it is tried alone, and its siblings score.
    """

    def __init__(self, most_known: int = _MOST_KNOWN):
        self._most_known = most_known
        self._deaths: OrderedDict[bytes, int] = OrderedDict()

    def holds(self, group: Group, whole: bool) -> bool:
        """Whether the group, or one of its completions if they may be scored apart, is refused."""
        return any(self._deaths.get(key, 0) >= _MOST_DEATHS for key in self._keys(group, whole))

    def refuse(self, group: Group, whole: bool) -> None:
        """Raises NoResultError if it is."""
        if self.holds(group, whole):
            raise NoResultError(
                Status.FAILED,
                f"not run again: it has cost {_MOST_DEATHS} worker processes their lives, by dying or by outlasting "
                "timeout_s; the server forgets this when it loads its configuration anew",
                retry_alone=False,
            )

    def note(self, group: Group, whole: bool, failure: NoResultError | None) -> None:
        """What became of it. A failure that left the worker alive says nothing of the deaths before."""
        if failure is None:
            for key in self._keys(group, whole):
                self._deaths.pop(key, None)
        elif failure.cost_worker:
            keys = self._keys(group, whole, even_if_none_is_known=True)
            for key in keys:
                before = self._deaths.pop(key, 0)  # and again at the end, where the newest are
                self._deaths[key] = max(before, 1) if len(keys) > 1 else before + 1
            while len(self._deaths) > self._most_known:
                self._deaths.popitem(last=False)

    def _keys(self, group: Group, whole: bool, even_if_none_is_known: bool = False) -> list[bytes]:
        """Of the group, or of each completion; none where nothing is known: the usual case costs nothing."""
        if not self._deaths and not even_if_none_is_known:
            return []
        shared = (group.prompt, group.columns)
        parts = [group.completions] if whole else [(completion,) for completion in group.completions]
        return [
            hashlib.blake2b(repr((shared, part)).encode("utf-8", "replace"), digest_size=16).digest() for part in parts
        ]
