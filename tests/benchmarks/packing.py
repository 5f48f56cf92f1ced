"""What packing costs the host: building the indices of a micro-batch from its rows' lengths, and sending them.

    python tests/benchmarks/packing.py [--rows 128] [--tokens 75000] [--group 8] [--repeats 20] [--device cpu]

Prints milliseconds (the median) for a micro-batch of groups that share their prompts, and of the same rows alone; and
how often the host copies to the device and reads from it for 1 and for 8 micro-batches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from grpo_plugin.batching.forward import packing_indices, read_rows
from grpo_plugin.batching.packing import PackingIndex, to_device
from grpo_plugin.batching.plan import PackedLayout, Rows


class HostTraffic(TorchDispatchMode):
    """Counts copies to the device, and reads from it."""

    sent = read = 0

    def __init__(self, device: torch.device):
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        target = (kwargs or {}).get("device")
        if function.name() == "aten::_to_copy" and target is not None:
            self.sent += torch.device(target).type == self._device.type
            self.read += torch.device(target).type != self._device.type
        self.read += function.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")
        return function(*args, **(kwargs or {}))


def make_rows(rows: int, tokens: int, group: int) -> Rows:
    """Groups of one prompt of 150 to 350 tokens, and completions of very different lengths; `tokens` in all."""
    chance = np.random.default_rng(0)
    prompts = np.repeat(chance.integers(150, 350, rows // group), group)
    completions = chance.lognormal(size=rows)
    completions = np.maximum(1, completions / completions.sum() * (tokens - prompts.sum())).astype(np.int64)
    return Rows(prompts, completions, np.repeat(np.arange(rows // group), group), np.zeros(rows, dtype=np.int64))


def tensors(rows: Rows, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Ids, mask, and the widths of prompts and completions."""
    prompt, width = int(rows.prompt_tokens_R.max()), int(rows.completion_tokens_R.max())
    column = np.arange(prompt + width)[None]
    first, end = prompt - rows.prompt_tokens_R[:, None], prompt + rows.completion_tokens_R[:, None]
    mask = torch.from_numpy(((column >= first) & (column < end)).astype(np.int64)).to(device)
    ids = torch.randint(3, 50_000, mask.shape, generator=torch.Generator().manual_seed(0)).to(device)
    return ids, mask, prompt, width


def median_ms(repeats: int, run: Callable[[], Any], device: torch.device) -> float:
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 128), ("tokens", 75_000), ("group", 8), ("repeats", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device, rows = torch.device(args.device), make_rows(args.rows, args.tokens, args.group)
    ids, mask, prompt, width = tensors(rows, device)
    print(f"{args.rows} rows of {rows.tokens_R.sum():,} tokens, torch {torch.__version__}, {device}")
    print(f"{'':>8} {'packed tokens':>14} {'families ms':>12} {'indices ms':>11} {'sending ms':>11} {'ids ms':>7}")
    for shares in (True, False):
        tokens, times = _packing(rows, ids, prompt, width, shares, args.repeats)
        columns = " ".join(f"{time_ms:>{size}.2f}" for time_ms, size in zip(times, (12, 11, 11, 7), strict=True))
        print(f"{'shared' if shares else 'alone':>8} {tokens:>14,} {columns}")
    print(
        f"reading lengths from the device, where they are not known: {_reading(args.repeats, ids, mask, width):.2f} ms"
    )
    traffic_device = device if device.type != "cpu" else torch.device("meta")
    for micro_batches in (1, 8):
        with HostTraffic(traffic_device) as traffic:
            packing_indices([(rows, prompt, width)] * micro_batches, PackedLayout(0.001, shares=True), traffic_device)
        print(
            f"{micro_batches} micro-batches of known lengths: {traffic.sent} copies to the device, {traffic.read} reads"
        )


def _packing(
    rows: Rows, ids: torch.Tensor, prompt: int, width: int, shares: bool, repeats: int
) -> tuple[int, list[float]]:
    """Tokens of the packed sequence, and milliseconds of each of the four steps."""
    layout, members, device = PackedLayout(0.001, shares=shares), range(len(rows.rank_R)), ids.device
    families = layout.families(rows, members)
    index = PackingIndex.of(rows, families, prompt, width)
    (sent,) = to_device([index], device)
    steps: list[Callable[[], Any]] = [
        lambda: layout.families(rows, members),
        lambda: PackingIndex.of(rows, families, prompt, width),
        lambda: to_device([index], device),
        lambda: sent.pack(ids),
    ]
    return len(index.source_T), [median_ms(repeats, step, device) for step in steps]


def _reading(repeats: int, ids: torch.Tensor, mask: torch.Tensor, width: int) -> float:
    return median_ms(repeats, lambda: read_rows(ids, mask, width), ids.device)


if __name__ == "__main__":
    main()
