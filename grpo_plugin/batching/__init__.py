"""Which rows go through the model together, and how: plans, packing, forwards, and when that is exact.

Owns the arrangement of an optimizer step's rows. Knows nothing of rewards or of the trainer's state.
"""
