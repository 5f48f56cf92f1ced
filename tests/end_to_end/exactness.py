"""Compares, on every rank, the gradients of a step with failed scores to those of the batch without those completions.

    accelerate launch … tests/end_to_end/exactness.py SPEC.json

One generation of 2 optimizer steps of 2 micro-batches a rank; the weights move a little after it, so that ratios differ
from 1. Then, for each loss, level and beta: our gradients, through the real (DDP-wrapped) model, micro-batch by
micro-batch; and TRL's own loss on one batch, made of the surviving rows of all ranks and micro-batches. Writes the
largest difference for each, relative to the largest gradient.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.nn.functional import pad
from trl import GRPOTrainer

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.builders import make_dataset

LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo")
LEVELS = ("token", "sequence")
BETAS = (0.0, 0.3)
WINDOW = 2  # micro-batches of an optimizer step


class Done(Exception):
    pass


def main(path: Path) -> None:
    spec = json.loads(path.read_text())
    args = RemoteGRPOConfig(str(path.parent / "run"), **spec["args"], beta=max(BETAS))
    trainer = RemoteGRPOTrainer(spec["model"], args=args, train_dataset=make_dataset(48))
    report: dict[str, Any] = {}

    def training_step(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        model.train()
        trainer._prepare_inputs(inputs)
        report.update(examine(trainer, model))
        raise Done

    trainer.training_step = training_step
    with contextlib.suppress(Done):
        trainer.train()
    if trainer.accelerator.is_main_process:
        path.with_suffix(".out").write_text(json.dumps(report))


def examine(trainer: Any, model: Any) -> dict[str, Any]:
    plain = trainer.accelerator.unwrap_model(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    batches = trainer._buffered_inputs
    ranks = gather_object([[{k: v for k, v in b.items() if isinstance(v, torch.Tensor)} for b in batches]])
    differences = {}
    for loss, level, beta in itertools.product(LOSSES, LEVELS, BETAS):
        trainer.loss_type, trainer.importance_sampling_level, trainer.beta = loss, level, beta
        for step in range(len(batches) // WINDOW):
            part = slice(step * WINDOW, (step + 1) * WINDOW)
            ours = our_gradients(trainer, model, plain, batches[part])
            theirs = their_gradients(trainer, model, plain, [rank[part] for rank in ranks])
            scale = max(g.abs().max() for g in theirs)
            largest = max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True))
            differences[f"{loss} {level} beta={beta} step {step}"] = (largest / scale).item()
    kept = torch.cat([batch["kept"] for rank in ranks for batch in rank])
    return {
        "differences": differences,
        "kept": int(kept.sum()),
        "rows": len(kept),
        "kept_by_micro_batch": [[int(batch["kept"].sum()) for batch in rank] for rank in ranks],
        "rewards": list(trainer._logs["rewards"]["flaky"]),
        "advantages": list(trainer._logs["advantages"]),
    }


def our_gradients(trainer: Any, model: Any, plain: Any, batches: list[Any]) -> list[torch.Tensor]:
    trainer.current_gradient_accumulation_steps = WINDOW
    plain.zero_grad()
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        trainer.accelerator.gradient_state._set_sync_gradients(last)
        model.require_backward_grad_sync = last  # DDP reduces in the last micro-batch; the loop around us had it off
        trainer.accelerator.backward(trainer._compute_loss(model, batch))
    return gradients(plain)


def their_gradients(trainer: Any, model: Any, plain: Any, ranks: list[list[Any]]) -> list[torch.Tensor]:
    """TRL's loss on the survivors alone, as one batch; bnpo, which is defined on its micro-batch, one by one."""
    trainer.current_gradient_accumulation_steps = 1
    processes = trainer.accelerator.num_processes
    steps, trainer.args.steps_per_generation = trainer.args.steps_per_generation, 1
    micro_batches = [batch for rank in ranks for batch in rank]
    # TRL's count of tokens spans the generation and is scaled to an optimizer step, so that each step has the same.
    tokens = micro_batches[0]["num_items_in_batch"] * WINDOW / steps
    parts = [[batch] for batch in micro_batches] if trainer.loss_type == "bnpo" else [micro_batches]
    plain.zero_grad()
    model.require_backward_grad_sync = False
    for part in parts:
        batch = survivors(part)
        batch["num_items_in_batch"] = tokens * processes  # TRL divides it by the number of processes
        loss = GRPOTrainer._compute_loss(trainer, plain, batch)
        (loss / len(parts)).backward()
    trainer.args.steps_per_generation = steps
    return gradients(plain)


def survivors(batches: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """The rows that were kept, as one batch: prompts padded on the left, completions on the right."""
    merged: dict[str, Any] = {}
    prompt, completion = ("prompt_ids", "prompt_mask"), ("completion_ids", "completion_mask")
    for name in (*prompt, *completion, "old_per_token_logps", "ref_per_token_logps"):
        if name in batches[0]:
            merged[name] = joined([b[name][b["kept"].bool()] for b in batches], left=name in prompt)
    merged["advantages"] = torch.cat([b["advantages"][b["kept"].bool()] for b in batches])
    return merged


def joined(parts: list[torch.Tensor], left: bool) -> torch.Tensor:
    width = max(part.shape[1] for part in parts)
    return torch.cat([pad(p, (width - p.shape[1], 0) if left else (0, width - p.shape[1])) for p in parts])


def gradients(model: Any) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
