"""The plan store: measurements and the plans derived from them, in memory above SQLite, with
shipped packs below it and lock files in its place.

What a process does not need that finds its plan in the store is imported at its first use: packs
and lock files take 9 ms of processor time (2-core machine), beside 33 for a cached `get_op` in a
new process.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gristmill.cache.store import CacheWarning, PlanStore, StoreSummary, store

if TYPE_CHECKING:
    from gristmill.cache.lockfile import read_lock
    from gristmill.cache.shards import Shards
    from gristmill.cache.shipped import shipped_plans

_HOMES = {"Shards": "shards", "read_lock": "lockfile", "shipped_plans": "shipped"}

__all__ = [
    "CacheWarning",
    "PlanStore",
    "Shards",
    "StoreSummary",
    "read_lock",
    "shipped_plans",
    "store",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gristmill.cache' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gristmill.cache.{_HOMES[name]}"), name)
