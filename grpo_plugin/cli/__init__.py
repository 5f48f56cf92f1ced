"""The `grpo` command, and what only commands need: data files, progress, plots and the quickstart.

Owns arguments, output and exit codes.
"""
