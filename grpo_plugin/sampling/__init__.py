"""Which prompts are generated for. Owns the history of prompts and what an epoch visits.

Knows nothing of models, services or ranks: every rank keeps the same history and so draws the same order.
"""
