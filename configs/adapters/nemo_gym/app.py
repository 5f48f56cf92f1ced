"""A resources server of NeMo-Gym: resources_servers/reward/app.py, which its configuration names as the entrypoint."""

from reward_server.adapters.nemo_gym import RewardResourcesServer

if __name__ == "__main__":
    RewardResourcesServer.run_webserver()
