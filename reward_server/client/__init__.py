"""Clients of a reward service, for threads, asyncio and single completions; reward functions for a stock TRL trainer.

Owns connections, credentials, retries and hedges. Knows nothing of scorers or of trainers, and loads neither torch nor
trl.
"""

from reward_server.client.clients import AsyncRewardClient, RewardClient
from reward_server.client.cohort_client import CohortClient
from reward_server.client.credentials import ClientTLS
from reward_server.client.remote_rewards import remote_rewards
from reward_server.client.targets import Endpoint

__all__ = ["AsyncRewardClient", "ClientTLS", "CohortClient", "Endpoint", "RewardClient", "remote_rewards"]
