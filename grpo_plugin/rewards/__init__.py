"""From completions to rewards: groups, calls to the reward service, its answers, and what failed scores lead to.

Owns the connection to the reward service and every decision about a failed score. Knows nothing of models, and of TRL
only the layout of its batches. A step goes through `columns` and `groups` (what is sent), `collect` (calls), `outcome`
(answers), `policies` (decisions) and `survivors` (tensors); `checks` and `connection` run before training, `failures`
and `provenance` over a whole run.
"""
