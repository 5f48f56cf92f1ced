"""Adapters: the reward service as other trainers ask for a reward, one file a trainer.

Owns the translation of a trainer's call into samples or groups, and of scores into what the trainer takes for a reward.
`settings` reads the configuration and `service` asks the server, for all of them. An adapter imports nothing of its
trainer until the trainer has loaded it. Knows nothing of scorers.
"""
