"""Scores that are already known: in memory, and on a disk that outlasts the server.

Owns what makes two requests the same and how long a score is kept. Failed scores are never kept.
"""
