"""Which prompts are generated for, and which groups are trained on.

Owns the history of prompts and what an epoch visits (`difficulty`), and how a batch is filled with groups that are
worth training on (`refill`, `group_filters`, `prompt_stream`). Knows nothing of models, services or of how ranks talk:
every rank keeps the same state and so decides the same.
"""
