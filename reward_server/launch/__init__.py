"""Starts a reward server as a child process, and starts it again when it dies.

Owns the child's life as its parent sees it. Knows nothing of what the server does: it reads the addresses that the
server reports, and everything else goes through `reward_server.client`.
"""

from reward_server.launch.launch import ServerProcess, launch_server
from reward_server.launch.supervised import SupervisedServer, launch_supervised

__all__ = ["ServerProcess", "SupervisedServer", "launch_server", "launch_supervised"]
