"""The trainer: short overrides around TRL's `GRPOTrainer`, one layer a file.

Owns what leans on TRL's internals. The layers are `log_probs` < `token_batches` < `kl` < `drop` < `group_signal` <
`score_ahead` < `record` < `report` < `curriculum` < `service_scores` < `remote`; each does one thing around `super()`.
"""

from grpo_plugin.trainer.remote import RemoteGRPOTrainer

__all__ = ["RemoteGRPOTrainer"]
