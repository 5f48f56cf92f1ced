"""Child processes, and whose death ends whom.

Owns the link between a parent and its children. Knows nothing of scorers or of gRPC.
"""
