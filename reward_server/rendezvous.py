"""Rendezvous hashing: which of several servers the samples of a group meet at, without any of them asking another.

Owns the order of names for a group. Knows nothing of addresses, connections or processes.

Everybody who has the same names gets the same order for a group, and a name that comes or goes moves only the groups
that it wins (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def ranked(names: Iterable[str], run_id: str, group_id: str) -> list[str]:
    """The names in the order in which a group prefers them; the group meets at the first."""
    group = f"{len(run_id)}:{run_id}:{group_id}".encode("utf-8", "surrogatepass")
    return sorted(names, key=lambda name: hashlib.blake2b(name.encode() + b"\0" + group, digest_size=16).digest())
