"""When rows may be rearranged and left out without changing what is learnt.

Owns the table of reasons. Reads settings of TRL's trainer and decides; changes nothing.

| | micro-batches are rearranged | rows without advantage are left out |
|---|---|---|
| any loss that is a sum over rows or tokens | yes | yes |
| … with a KL term | yes | no: it has a gradient where the advantage has none |
| `bnpo`, entropy bonus or quantile, auxiliary loss of experts: means of a micro-batch | no, trimmed | no |
| dropout, of modules (also LoRA's) or functional (OPT, Seed-OSS) | yes, other random draws | yes |
| NEFTune, whose noise shrinks with the width of the padded batch | no, TRL's as they are | no |

With dropout each row is distributed as with TRL, but its numbers are not TRL's: the draws depend on the arrangement.

One number differs from TRL's on purpose: a group whose rewards are all equal has advantages of exactly 0 here
(`trainer.group_signal`). With TRL they are what the rounding of the group's mean leaves, 0.0012 for 8 rewards of 1.2.
"""

from __future__ import annotations

from typing import Any


def reason_to_keep_padding(trainer: Any) -> str | None:
    """Why the model has to see TRL's batches with all their padding; None if it need not."""
    if trainer.neftune_noise_alpha is not None:
        return "NEFTune's noise depends on the width of a batch (neftune_noise_alpha)"
    return None


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
