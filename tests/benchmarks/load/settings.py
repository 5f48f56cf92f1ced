"""What every part of service_load.py is told, and how it prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """`rounds` turns a target, `seconds` each, with `callers` at once. The targets take turns: load slows all alike.

    `device` is where the model of parts (a) and (b) runs: cpu or cuda.
    """

    rounds: int = 5
    seconds: float = 6.0
    callers: int = 64
    device: str = "cpu"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) + 2 for column in range(len(header))]
    for row in (header, *rows):
        print(
            row[0].ljust(widths[0])
            + "".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        )
