"""Packed rows in a model of transformers: the attention that keeps them apart, and what it cannot know of a model.

Owns segments, the attention function that takes them, and torch's kernels of variable length. Knows nothing of rewards,
trainers or servers: the trainer and the reward server's models use it alike, and neither imports the other.
"""
