"""Failure policies: what `on_reward_failure` may name, and the types that a policy of your own is made of.

Hands on the public names of `grpo_plugin.rewards.policies`.
"""

from grpo_plugin.rewards.policies import DropGroup, Drops, DropSample, DropScorer, FailurePolicy, Raise

__all__ = ["DropGroup", "DropSample", "DropScorer", "Drops", "FailurePolicy", "Raise"]
