"""The plan store: measurements and the plans derived from them, in memory above SQLite."""

from gristmill.cache.store import CacheWarning, PlanStore, StoreSummary, store

__all__ = ["CacheWarning", "PlanStore", "StoreSummary", "store"]
