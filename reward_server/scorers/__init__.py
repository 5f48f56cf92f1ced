"""The kinds of scorers: `base` and `batched` are what a scorer of your own subclasses, `registry` finds a kind by name.

Owns what a score is: options, prompts, models and the reading of answers. Knows nothing of gRPC, of queues and of where
its scorers run.
"""
