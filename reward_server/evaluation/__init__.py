"""What is known of a reward without training on it: tests of it, attacks on it, old completions scored anew.

Owns cases and what they expect, the known reward hacks, and the comparison of two configurations' scores. Scores are
computed by `serving.scorer_set` in this process, or by a running server; nothing here listens or serves.
"""
