"""What the trial at start-up finds on each rank of `accelerate launch`, and what it leaves of gradients.

    accelerate launch … tests/end_to_end/layouts.py SPEC.json…

A spec names a model and the trainer's arguments. The first rank writes, for each rank: the layout, how often the trial
could ask for a gradient, and whether any parameter had a gradient or another mode after it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from grpo_plugin import RemoteGRPOConfig, RemoteGRPOTrainer
from grpo_plugin.batching.trial import Trial

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support import scoring
from tests.support.builders import make_dataset


def main(path: Path) -> None:
    spec = json.loads(path.read_text())
    trainer = RemoteGRPOTrainer(
        spec["model"],
        reward_funcs=scoring.vowels,
        args=RemoteGRPOConfig(str(path.parent / "run"), **spec["args"]),
        train_dataset=make_dataset(),
    )
    found: list[dict[str, Any]] = []
    generate = trainer._generate_and_score_completions

    def generate_after_the_trial(inputs: Any) -> Any:
        if not found:  # the model is wrapped by now, and nothing was trained
            found.append(examine(trainer))
        return generate(inputs)

    trainer._generate_and_score_completions = generate_after_the_trial
    trainer.train()
    everyones = gather_object(found)
    if trainer.accelerator.is_main_process:
        path.with_suffix(".out").write_text(json.dumps(everyones))


def examine(trainer: Any) -> dict[str, Any]:
    gradients: list[bool] = []
    ask = Trial._gradient

    def asked(*args: Any) -> Any:
        gradient = ask(*args)
        gradients.append(gradient is not None)
        return gradient

    modes = [module.training for module in trainer.model.modules()]
    Trial._gradient = asked
    layout = trainer._layout
    Trial._gradient = ask
    return {
        "layout": str(layout),
        "gradients": gradients,
        "left": sum(parameter.grad is not None for parameter in trainer.model.parameters()),
        "modes": [module.training for module in trainer.model.modules()] == modes,
    }


if __name__ == "__main__":
    for spec in sys.argv[1:]:
        main(Path(spec))
