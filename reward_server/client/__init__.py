"""Clients of a reward service. Loads neither torch nor trl."""

from reward_server.client.clients import AsyncRewardClient, RewardClient
from reward_server.client.credentials import ClientTLS
from reward_server.client.remote_rewards import remote_rewards
from reward_server.client.targets import Endpoint

__all__ = ["AsyncRewardClient", "ClientTLS", "Endpoint", "RewardClient", "remote_rewards"]
