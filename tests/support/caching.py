"""An executor behind a cache, for tests of the cache."""

from __future__ import annotations

import dataclasses
from typing import Any

from reward_server.cache.cache import Cache
from reward_server.cache.cached_executor import CachedExecutor
from reward_server.execution.executors import Executor
from reward_server.execution.results import ScorerDescription
from reward_server.scorers.registry import build, parse_options

DESCRIPTION = ScorerDescription("1", (), deterministic=True, group_aware=False)


def cached(cache: Cache, inner: Executor, group_aware: bool = False, **options: Any) -> CachedExecutor:
    """The executor of a length scorer of these options, behind the cache."""
    scorer = build(parse_options({"type": "length", "name": "s", "max": 9, **options}))
    return cache.around(inner, scorer, dataclasses.replace(DESCRIPTION, group_aware=group_aware))
