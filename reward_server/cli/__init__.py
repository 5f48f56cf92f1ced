"""The `reward-server` command.

Owns arguments, output and exit codes. What a command does is in the package that it calls.
"""
