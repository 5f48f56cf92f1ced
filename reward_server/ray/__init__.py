"""The reward service on Ray Serve, which places, scales and replaces its replicas on a cluster.

    serve run reward_server.ray:app config=reward.yaml

Owns the application, its replicas, how several of them take over a configuration together, and the way of a call from
Ray's proxy to `serving`. Knows nothing of how a group is scored. Nothing else imports this package or Ray.
"""

try:
    import ray.serve  # noqa: F401 - the first to need it says how to install it
except ImportError as error:
    raise ImportError(f"Ray Serve cannot be imported ({error}): pip install 'grpo-plugin[ray]'") from error

from reward_server.ray.application import app

__all__ = ["app"]
