"""The former place of `reward_server.launch`'s supervised servers; kept for code that imports them from here."""

from reward_server.launch import SupervisedServer, launch_supervised

__all__ = ["SupervisedServer", "launch_supervised"]
