"""What computing a prompt once costs and saves, measured beside the estimate that decides it (`batching/sharing.py`).

    python tests/benchmarks/sharing.py [--device cpu] [--groups 4] [--repeats 5] [--cases 12x200,40x200,…]

A case is prompt tokens x completion tokens, of `--groups` groups of 8 rows in one micro-batch. Forward and backward
alternate between prompts that are shared and prompts that are not. Columns: the tokens of each; seconds of each (the
median), and their ratio beside the estimated one; what the forward keeps for the backward of each, in MiB, and their
ratio beside the estimated one; what the estimate decides.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

sys.path.insert(0, str(Path(__file__).parents[2]))

from grpo_plugin.batching.forward import packed_forward
from grpo_plugin.batching.plan import PackedLayout, Rows, attention_cost
from grpo_plugin.batching.sharing import KeyCost
from packed_attention.attention import register
from tests.benchmarks.packing import tensors
from tests.benchmarks.updates.cases import QWEN_HALF_B, SMALL
from tests.support.memory import SavedTensors

GROUP = 8
CASES = "8x64,12x200,24x200,40x200,40x1000,150x200,512x128"
FREE = KeyCost(time=0.0, memory=0.0)


def rows_of(prompt: int, completion: int, groups: int) -> Rows:
    count = groups * GROUP
    group_R = np.repeat(np.arange(groups), GROUP)
    return Rows(np.full(count, prompt), np.full(count, completion), group_R, np.zeros(count, dtype=np.int64))


def timed(model: Any, rows: Rows, layout: PackedLayout, device: torch.device) -> tuple[float, float, int]:
    """Seconds of a forward and backward, MiB kept between them, and tokens."""
    ids, mask, _, width = tensors(rows, device)
    ids = torch.where(mask.bool(), 3 + ids % 250, 0)
    for group in range(0, len(ids), GROUP):  # one prompt a group
        prompt = ids.shape[1] - width
        ids[group : group + GROUP, :prompt] = ids[group, :prompt]
    autocast = contextlib.nullcontext if device.type == "cpu" else lambda: torch.autocast("cuda", torch.bfloat16)
    meter = SavedTensors(room_bytes=0)
    synchronize(device)
    began = time.perf_counter()
    meter.begin()
    log_probs, _ = packed_forward(model, ids, mask, width, layout, autocast)
    kept = meter.end() / 2**20
    log_probs.sum().backward()
    synchronize(device)
    seconds = time.perf_counter() - began
    model.zero_grad()
    return seconds, kept, layout.tokens(rows, range(len(ids)))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def estimated(rows: Rows, attention: float, keys: KeyCost) -> tuple[float, float]:
    """Time and memory if no prompt is shared over those if all are."""
    alone, shared = PackedLayout(attention, shares=False), PackedLayout(attention, shares=True, keys=FREE)
    everyone = range(len(rows.rank_R))
    copied = sum(
        (len(family) + 1) * (int(rows.prompt_tokens_R[family[0]]) - 1)
        + sum(int(rows.completion_tokens_R[row]) + 1 for row in family)
        for family in shared.families(rows, everyone)
    )
    time_ratio = alone.cost(rows, everyone) / (shared.cost(rows, everyone) + keys.time * copied)
    return time_ratio, alone.tokens(rows, everyone) / (shared.tokens(rows, everyone) + keys.memory * copied)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", default=CASES)
    options = parser.parse_args()
    device = torch.device(options.device)
    register()
    with tempfile.TemporaryDirectory() as folder:
        shape = SMALL if options.device == "cpu" else QWEN_HALF_B
        model = AutoModelForCausalLM.from_pretrained(shape.save(Path(folder))).to(device)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    config = model.config
    attention = attention_cost(config.hidden_size, config.intermediate_size)
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    keys = KeyCost.of(config.hidden_size, config.intermediate_size, width, device.type)
    print(f"torch {torch.__version__}, {device}; {keys}")
    print("    case    tokens: alone  shared   s: alone  shared  ratio  estimate   MiB: alone  shared  ratio  estimate")
    for case in options.cases.split(","):
        rows = rows_of(*map(int, case.split("x")), options.groups)
        report(case, model, rows, attention, keys, options.repeats, device)


def report(
    case: str, model: Any, rows: Rows, attention: float, keys: KeyCost, repeats: int, device: torch.device
) -> None:
    layouts = [PackedLayout(attention, shares=False), PackedLayout(attention, shares=True, keys=FREE)]
    found = [[timed(model, rows, layout, device) for layout in layouts] for _ in range(repeats + 1)][1:]
    alone, shared = (
        (statistics.median(run[which][0] for run in found), *found[0][which][1:]) for which in range(len(layouts))
    )
    times, memory = estimated(rows, attention, keys)
    decided = PackedLayout(attention, shares=True, keys=keys).families(rows, range(len(rows.rank_R)))
    verdict = "shared" if len(decided) < len(rows.rank_R) else "alone"
    print(
        f"{case:>8} {alone[2]:>16,} {shared[2]:>7,} {alone[0]:>10.3f} {shared[0]:>7.3f} {alone[0] / shared[0]:>6.2f} "
        f"{times:>9.2f} {alone[1]:>12.1f} {shared[1]:>7.1f} {alone[1] / shared[1]:>6.2f} {memory:>9.2f}   {verdict}",
        flush=True,
    )


if __name__ == "__main__":
    main()
