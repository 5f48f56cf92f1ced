"""The service under load, a part at a time; each prints what it measures and what it is measured against.

    python tests/benchmarks/service_load.py [--part a,b,c,d] [--rounds 5] [--seconds 6] [--callers 64] [--device cuda]

A part is a module of tests/benchmarks/load with `run(settings)`, named in PARTS; it starts what it measures in
processes of its own and lets the targets take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.load.settings import Settings

PARTS = {
    "a": (
        "a classifier, against a loop that scores each request alone and against the model offline",
        "offline",
    ),
    "b": ("the same, against a FastAPI server that scores one request at a time", "fastapi"),
    "c": (
        "a scorer that computes, with 1 and with 2 workers, and with 1 and 2 server processes",
        "parallel",
    ),
    "d": ("the cache, on repeats and where nothing repeats", "repeats"),
}


def main() -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default=",".join(PARTS), help=f"of {', '.join(PARTS)}, separated by commas")
    parser.add_argument("--rounds", type=int, default=defaults.rounds)
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="of each turn")
    parser.add_argument("--callers", type=int, default=defaults.callers)
    parser.add_argument("--device", default=defaults.device, choices=["cpu", "cuda"], help="of the model of a and b")
    args = parser.parse_args()
    parts = [part.strip() for part in args.part.split(",")]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    for name in parts:
        title, module = PARTS[name]
        print(f"\n({name}) {title}", flush=True)
        importlib.import_module(f"tests.benchmarks.load.{module}").run(
            Settings(args.rounds, args.seconds, args.callers, args.device)
        )


if __name__ == "__main__":
    main()
