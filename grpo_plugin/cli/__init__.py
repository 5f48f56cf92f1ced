"""The `grpo` command, and what only commands need: data files, progress, plots, signals and the quickstart.

Owns arguments, output and exit codes. Knows nothing of how a step is computed or scored.
"""
