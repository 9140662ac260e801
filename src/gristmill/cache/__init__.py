"""The plan store: measurements and the plans derived from them, in memory above SQLite.

What a process does not need that finds its plan in the store's file is imported at its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gristmill.cache.store import CacheWarning, PlanStore, StoreSummary, store

if TYPE_CHECKING:
    from gristmill.cache.shards import Shards

_HOMES = {"Shards": "shards"}

__all__ = ["CacheWarning", "PlanStore", "Shards", "StoreSummary", "store"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gristmill.cache' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gristmill.cache.{_HOMES[name]}"), name)
