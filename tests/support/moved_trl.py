"""Trains with whatever TRL is on the path, ours with token batches and stock, and prints how far they are apart.

python -m tests.support.moved_trl MODEL FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import trl

from tests.support.training import largest_difference, train_both

if __name__ == "__main__":
    model, folder = sys.argv[1:]
    ours, theirs = train_both(Path(folder), model, max_steps=2)
    print(Path(trl.__file__).parent, largest_difference(ours, theirs))
