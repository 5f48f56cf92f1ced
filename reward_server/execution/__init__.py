"""Executors: where scorers run, and how groups reach them.

Owns the executors and what they are made of: worker processes, threads, batches, queues, time limits, quarantine and
the isolation of failures. Knows nothing of gRPC, of callers' credentials, of the cache or of metrics.
"""
