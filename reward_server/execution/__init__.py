"""Where scorers run, and how work reaches them: executors, worker processes, threads, batches and queues.

Owns the order of work, its deadlines and the isolation of failures. Knows nothing of gRPC or of callers' credentials.
"""
