"""The cache of scores: what was scored before is looked up, in memory or on a disk that outlives the server.

Owns what makes two requests the same, what is kept and for how long, and in-flight deduplication. A failed score is
never kept. Knows nothing of gRPC and of kinds of scorers: its executor wraps any other.
"""
