"""The gRPC server: a call, the scorers of one configuration, the life of a server process and of several.

Owns who may call, how much at once, and how a configuration is replaced. Knows nothing of how scores are computed
(`execution`) or of the command line (`cli`).
"""
