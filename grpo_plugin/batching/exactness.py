"""When rows may be rearranged and left out without changing what is learnt.

Owns the table of reasons, which the README repeats. Reads settings of TRL's trainer and decides; changes nothing.

| | micro-batches are rearranged | rows without advantage are left out |
|---|---|---|
| any loss that is a sum over rows or tokens | yes | yes |
| … with a KL term | yes | no: it has a gradient where the advantage has none |
| `bnpo`, entropy bonus or quantile, auxiliary loss of experts: means of a micro-batch | no, trimmed | no |
"""

from __future__ import annotations

from typing import Any


def reason_to_keep_micro_batches(trainer: Any) -> str | None:
    """Why TRL's micro-batches have to stay as they are, and are only trimmed; None if they need not."""
    if trainer.loss_type == "bnpo":
        return "loss 'bnpo' is a mean over its micro-batch"
    if trainer.top_entropy_quantile < 1.0:
        return "top_entropy_quantile is taken over a micro-batch"
    if trainer._entropy_bonus_enabled:
        return "the entropy bonus is a mean over its micro-batch"
    if trainer.aux_loss_enabled:
        return "the experts' auxiliary loss is one of its micro-batch"
    return None


def reason_to_keep_rows(trainer: Any, batch: dict[str, Any], anchored_to_old: bool) -> str | None:
    """Why rows without advantage have to go through the model all the same; None if they need not."""
    if trainer.beta != 0.0 or (anchored_to_old and "old_per_token_logps" in batch):
        return "the KL term has a gradient in rows without advantage"
    return None
