"""Child processes: how they are started, how they talk to their parent, and which process ends with which.

Owns the link between a parent and its child processes. Knows nothing of scorers or of gRPC.
"""
