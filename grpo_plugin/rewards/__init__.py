"""From completions to rewards: groups, the service, what came back, and what happens to failed scores.

Owns the talk with the reward service and every decision on a failed score. Knows nothing of models or of TRL.
"""
