"""Notes which collectives each rank starts while it runs optimizer steps, for every loss, KL term and kind of plan.

    accelerate launch … tests/end_to_end/collectives.py SPEC.json

One generation on two ranks. One completion is far longer than all others, so that the rank which computes it has one
micro-batch where the other has several, and runs fillers. Each case is an optimizer step on that generation, through
the real (DDP-wrapped) model. A rank writes a line for each collective as it starts, into `<rank>.log` beside the spec:
the case, the operation, what it sends and the line of code that asked for it. Lines written before a rank hangs stay.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import distributed

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from grpo_plugin.batching.rows import MICRO_BATCH_STATS

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.builders import make_dataset

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
LEVELS = ("token", "sequence")
KL_TERMS = ("none", "reference", "old policy", "old policy, just sampled")
BUDGETS = {"fillers": 40, "no fillers": None}  # tokens of a micro-batch
BETA = 0.1
OPERATIONS = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "all_to_all", "broadcast")


class Done(Exception):
    pass


class CollectiveLog:
    """Writes a line for each collective of this rank, before it starts."""

    def __init__(self, file: TextIO):
        self._file = file
        self.case = ""
        for name in OPERATIONS:
            setattr(distributed, name, self._noting(name, getattr(distributed, name)))

    def _noting(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operation)
        def noting(*args: Any, **kwargs: Any) -> Any:
            sent = [f"{tuple(a.shape)} {a.dtype}" for a in args if isinstance(a, torch.Tensor)]
            self._file.write(f"{self.case}\t{name}\t{' '.join(sent)}\t{_caller()}\n")
            self._file.flush()
            return operation(*args, **kwargs)

        return noting


def _caller() -> str:
    """The innermost line outside torch, accelerate and this file."""
    frame: Any = sys._getframe(2)
    while frame.f_back and any(part in frame.f_code.co_filename for part in ("/torch/", "/accelerate/", __file__)):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def one_long_completion(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Completions of 2 or 3 tokens, but for the first of the global batch, which has 100."""
    first = trainer.accelerator.process_index * len(prompts)
    texts = ["x" * (100 if first + index == 0 else 2 + index % 2) for index in range(len(prompts))]
    completion_ids = trainer.processing_class(text=texts)["input_ids"]
    logprobs = [[0.0] * len(ids) for ids in completion_ids]
    prompt_ids = trainer.processing_class(text=prompts)["input_ids"]
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}


def all_different(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    return [
        zlib.crc32(f"{p} {c} {i}".encode()) / 2**32 for i, (p, c) in enumerate(zip(prompts, completions, strict=True))
    ]


def main(path: Path) -> None:
    spec = json.loads(path.read_text())
    args = RemoteGRPOConfig(str(path.parent / "run"), **spec["args"], beta=BETA)
    trainer = RemoteGRPOTrainer(
        spec["model"],
        reward_funcs=all_different,
        args=args,
        train_dataset=make_dataset(48),
        rollout_func=one_long_completion,
    )
    step = trainer.training_step

    def training_step(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        with open(path.parent / f"{trainer.accelerator.process_index}.log", "w") as file:
            report = run_cases(trainer, model, inputs, step, CollectiveLog(file))
        (path.parent / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(report))
        raise Done

    trainer.training_step = training_step
    with contextlib.suppress(Done):
        trainer.train()


def run_cases(trainer: Any, model: Any, inputs: Any, step: Callable[..., Any], log: CollectiveLog) -> dict[str, int]:
    """Runs an optimizer step for each case; how many fillers this rank ran in each."""
    model.train()
    log.case = "generation"
    trainer._prepare_inputs(inputs)
    generation, fillers = trainer._buffered_inputs, {}
    for loss, level, kl, plan in itertools.product(LOSSES, LEVELS, KL_TERMS, BUDGETS):
        log.case = f"{loss} {level}, KL {kl}, {plan}"
        trainer.loss_type, trainer.importance_sampling_level = loss, level
        trainer.beta = BETA if kl == "reference" else 0.0
        trainer._kl_beta = BETA if kl.startswith("old policy") else 0.0
        trainer.args.max_tokens_per_micro_batch = BUDGETS[plan]
        trainer._buffered_inputs = [
            {name: value for name, value in batch.items() if kl != KL_TERMS[-1] or name != "old_per_token_logps"}
            for batch in generation
        ]
        with counted_fillers(trainer) as count:
            optimizer_step(trainer, model, inputs, step)
        fillers[log.case] = len(count)
    return fillers


@contextlib.contextmanager
def counted_fillers(trainer: Any) -> Iterator[list[int]]:
    found: list[int] = []
    plain = type(trainer)._compute_loss

    def counting(model: Any, inputs: Any) -> Any:
        if MICRO_BATCH_STATS in inputs and not inputs["completion_mask"].any():
            found.append(1)
        return plain(trainer, model, inputs)

    trainer._compute_loss = counting
    yield found
    del trainer._compute_loss


def optimizer_step(trainer: Any, model: Any, inputs: Any, step: Callable[..., Any]) -> None:
    """The calls of an optimizer step, as transformers' Trainer makes them, on the generation that is there."""
    calls = trainer.args.gradient_accumulation_steps
    trainer._step = calls
    model.zero_grad()
    for index in range(calls):
        last = index == calls - 1
        trainer.accelerator.gradient_state._set_sync_gradients(last)
        with contextlib.nullcontext() if last else model.no_sync():
            step(model, inputs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
