"""How long `reward-server view` takes to filter 1,000,000 recorded completions: seconds a filter, warm.

    python tests/benchmarks/view_filter.py [--completions 1000000] [--rounds 5]

Writes Parquet parts of 256 groups of 8 completions with three scorers, as a server does, and asks what the Groups view
asks. The numbers are medians over the rounds after a first one: seconds, and seconds of processor time (DuckDB uses all
cores). The aim is 1 s for each filter on two cores.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from reward_server.observability.record_table import part_schema
from reward_server.view.filters import Filter, find
from reward_server.view.sources import Sources
from reward_server.view.store import Store

SIZE, PART_GROUPS, STEPS = 8, 256, 1000
AIM_S = 1.0
FILTERS = {
    "steps 100 to 200": Filter(first_step=100, last_step=200),
    "reward at least 1.9": Filter(least=1.9),
    "scorer between 0.2 and 0.3": Filter(scorer="format", least=0.2, most=0.3),
    "a scorer's status": Filter(scorer="judge", status="TIMEOUT"),
    "text that few have": Filter(text="needle in it"),
    "text that many have": Filter(text="therefore"),
    "all of them": Filter(first_step=1, least=0.5, scorer="judge", status="OK", text="because"),
}
TEXT = "we so add the two of them because therefore it is a box holds pens and each one has many needle in"
WORDS = TEXT.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.completions)
        size = sum(part.stat().st_size for part in Path(folder).iterdir())
        began = time.perf_counter()
        store = Store(Sources(parts=(Path(folder),)))
        print(f"{args.completions:,} completions, {size / 1e6:.0f} MB, opened in {time.perf_counter() - began:.2f} s")
        for name, wanted in FILTERS.items():
            seconds, busy, found = timed(store, wanted, args.rounds)
            mark = "" if seconds <= AIM_S else f"  above {AIM_S} s"
            print(f"{name:28} {seconds:6.3f} s  cpu {busy:6.3f} s  {found.all_completions:>9,} completions{mark}")
        store.close()


def timed(store: Store, wanted: Filter, rounds: int) -> tuple[float, float, Any]:
    found = find(store, wanted)
    seconds, busy = [], []
    for _ in range(rounds):
        began, began_busy = time.perf_counter(), time.process_time()
        found = find(store, wanted)
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - began_busy)
    return statistics.median(seconds), statistics.median(busy), found


def write(folder: Path, completions: int) -> None:
    """Parts whose texts come from a pool of 20,000, some 400 characters long, with a number of their own."""
    import pyarrow  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    draw = random.Random(0)
    pool = [" ".join(draw.choices(WORDS, k=80)) for _ in range(20_000)]
    groups = completions // SIZE
    for start in range(0, groups, PART_GROUPS):
        rows = [
            row(draw, pool, number, index, number * STEPS // groups)
            for number in range(start, min(groups, start + PART_GROUPS))
            for index in range(SIZE)
        ]
        table = pyarrow.Table.from_pylist(rows, schema=part_schema())
        parquet.write_table(table, folder / f"{start:09d}.parquet", compression="zstd")


def row(draw: random.Random, pool: list[str], number: int, index: int, step: int) -> dict[str, Any]:
    scores = {"correct": float(draw.random() < 0.5), "format": draw.random(), "judge": draw.random()}
    is_late = draw.random() < 0.01
    return {
        "schema": 1,
        "time": "2026-11-27T06:00:00.000+00:00",
        "run_id": "bench",
        "step": step,
        "group_id": f"{step}-{number}",
        "index": index,
        "of": SIZE,
        "prompt": f"A box holds {number} pens. How many do two boxes hold?",
        "prompt_is_messages": False,
        "completion": f"{number}.{index}: {draw.choice(pool)}",
        "completion_is_messages": False,
        "columns": '{"answer": "62"}',
        "reward": None if is_late else sum(scores.values()),
        "scorers": [scorer(name, None if is_late and name == "judge" else score) for name, score in scores.items()],
        "config_digest": "d",
        "queued_s": 0.01,
        "compute_s": 0.1,
    }


def scorer(name: str, score: float | None) -> dict[str, Any]:
    status = "OK" if score is not None else "TIMEOUT"
    return {"name": name, "version": "1", "weight": 1.0, "score": score, "status": status, "message": "", "extra": ""}


if __name__ == "__main__":
    main()
