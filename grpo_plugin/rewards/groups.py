"""Makes whole groups of rows that are spread over ranks.

Owns the arithmetic of which rank holds which row, the exchange of rows for groups that lie on two ranks, and the
translation of a row of TRL into what the service takes (images become data URLs, columns plain values). Knows nothing
of gRPC. Groups are sent by `submit` (collect.py).

TRL lays the global batch out so that the G rows of a group are contiguous, rank after rank:

    rank          0          |          1          |          2            N = 3 rows a rank, G = 4
    row       0    1    2    |    3    4    5      |    6    7    8  …
    group     0    0    0    |    0    1    1      |    1    1    2  …

A group belongs to the rank of its first row: group 0 to rank 0, to which rank 1 sends row 3.

Legend: N rows on this rank, G completions of a group, R = N × ranks rows of the global batch.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from reward_server.client.plain import plain
from reward_server.types import Content, Group


@dataclass(frozen=True, slots=True)
class Row:
    """One completion as the trainer holds it; may be sent to another rank."""

    prompt: Content
    content: Content
    token_ids: Sequence[int] | None
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Which rank holds which rows and groups: N rows on each of `ranks` ranks, G rows in each group."""

    rows: int
    group_size: int
    rank: int
    ranks: int

    def __post_init__(self) -> None:
        if self.rows * self.ranks % self.group_size:
            raise ValueError(
                f"a batch of {self.rows * self.ranks} rows ({self.rows} on each of {self.ranks} ranks) does not hold "
                f"whole groups of {self.group_size}: change the per-device batch size or the number of generations"
            )

    @property
    def straddles(self) -> bool:
        """Whether some group has rows on more than one rank; every rank answers the same."""
        return self.ranks > 1 and self.rows % self.group_size != 0

    @property
    def groups(self) -> int:
        """How many groups the global batch holds."""
        return self.rows * self.ranks // self.group_size

    @property
    def first_row(self) -> int:
        """The global number of this rank's first row."""
        return self.rank * self.rows

    def owned(self) -> range:
        """The groups whose first row is on this rank."""
        return range(self._first_group(self.rank), self._first_group(self.rank + 1))

    def heads(self) -> int:
        """How many of this rank's rows, from the first on, belong to a group that an earlier rank owns."""
        return min(self.rows, self._first_group(self.rank) * self.group_size - self.first_row)

    def _first_group(self, rank: int) -> int:
        """The first group that starts on `rank` or later."""
        return -(-rank * self.rows // self.group_size)


def whole_groups(
    rows_N: Sequence[Row], layout: GroupLayout, gather: Callable[[list[Any]], list[Any]]
) -> dict[int, Sequence[Row]]:
    """The G rows of each group that this rank owns, by the group's number in the global batch.

    `gather` concatenates a list over the ranks; it is called on all of them or, where no group straddles, on none.
    """
    tails: dict[int, Row] = {}
    if layout.straddles:
        mine = [(layout.first_row + index, rows_N[index]) for index in range(layout.heads())]
        tails = dict(gather(mine))
    held = {layout.first_row + index: row for index, row in enumerate(rows_N)} | tails
    size = layout.group_size
    return {group: [held[row] for row in range(group * size, (group + 1) * size)] for group in layout.owned()}


def make_group(rows_G: Sequence[Row], *, token_ids: bool, **names: Any) -> Group:
    """The rows of one group as the service takes them. `names` are run_id, step, group_id and scorers."""
    return Group.of_rows(
        [with_data_urls(row.prompt) for row in rows_G],
        [with_data_urls(row.content) for row in rows_G],
        [row.token_ids or () for row in rows_G] if token_ids else None,
        [plain(row.columns) for row in rows_G],
        **names,
    )


def with_data_urls(value: Any) -> Any:
    """A message tree in which each PIL image is a PNG data URL; the same object where there is none."""
    if isinstance(value, Image.Image):
        return _data_url(value)
    if isinstance(value, Mapping):
        changed = {key: with_data_urls(item) for key, item in value.items()}
        return changed if any(changed[key] is not value[key] for key in value) else value
    if isinstance(value, (list, tuple)):
        items = [with_data_urls(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
