"""Two record files of the same completions, as tables. Pure; the comparison itself is `evaluation.rescore`'s."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pandas

from reward_server.evaluation.recorded import Record, read_records
from reward_server.evaluation.rescore import Difference, compare
from reward_server.view.store import Store

MOST_GROUPS = 20_000
_SHOWN = 10


@dataclass(frozen=True)
class Compared:
    """`spreads`: a row a scorer; `differing`: the groups that differ most; `tau` and `turned` as in the comparison."""

    groups: int
    is_cut: bool
    tau: float | None
    turned: float | None
    spreads: pandas.DataFrame
    differing: pandas.DataFrame
    rewards: pandas.DataFrame


def compared(store: Store, before: str, after: str) -> Compared:
    """Compares the groups that both files hold. Raises InvalidGroupError for a file that holds no records."""
    old, new = (list(itertools.islice(read_records([Path(path)]), MOST_GROUPS)) for path in (before, after))
    comparison = compare(old, new)
    names = list(dict.fromkeys([*comparison.before, *comparison.after]))
    spreads = [
        {
            "scorer": name,
            **{
                f"{when} {what}": getattr(side[name], what) if name in side else None
                for when, side in (("before", comparison.before), ("after", comparison.after))
                for what in ("mean", "std", "missing")
            },
        }
        for name in names
    ]
    order = sorted(comparison.differences, key=lambda one: (one.tau if one.tau is not None else 2.0, -one.turned))
    differing = [one for one in order if one.turned or (one.tau is not None and one.tau < 1)][:_SHOWN]
    return Compared(
        len(comparison.differences),
        max(len(old), len(new)) == MOST_GROUPS,
        comparison.tau,
        comparison.turned,
        pandas.DataFrame(spreads),
        pandas.DataFrame([_row(one) for one in differing]),
        _rewards({record.key: record for record in old}, [one.record for one in differing]),
    )


def _row(one: Difference) -> dict[str, object]:
    group = one.record.group
    return {"step": group.step, "group": group.group_id, "τ": one.tau, "turned": one.turned, "of": one.compared}


def _rewards(old: dict[str, Record], new: list[Record]) -> pandas.DataFrame:
    """Of the groups that differ most: step, group, completion, before, after, text."""
    rows = [
        {
            "step": record.group.step,
            "group": record.group.group_id,
            "completion": index,
            "before": before,
            "after": after,
            "text": str(content),
        }
        for record in new
        for index, (before, after, content) in enumerate(
            zip(old[record.key].rewards_G, record.rewards_G, record.group.contents(), strict=True)
        )
    ]
    return pandas.DataFrame(rows, columns=["step", "group", "completion", "before", "after", "text"])
