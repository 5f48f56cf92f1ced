"""The `reward-server` command.

Owns arguments, output and exit codes. Knows nothing of how a command's work is done: the other packages do it.
"""
