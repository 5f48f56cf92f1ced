"""The gRPC server: one call, one configuration's scorers, the life of a process and of a group of processes.

Owns who may call, how much at once, and how a configuration is replaced. Scores are computed in `execution`.
"""
