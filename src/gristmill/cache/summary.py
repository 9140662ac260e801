"""What a store holds and how it is, for people and for `gristmill cache show`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from gristmill.cache.faults import State
from gristmill.record import record


@record
class StoreSummary:
    """What a store holds, and how it is.

    Attributes:
        path: the file (whether it exists or not).
        size_bytes: the file with its log.
        measurements, plans: rows in the file.
        by_op: the same per op: `{"matmul": {"measurements": 120, "plans": 2}}`.
        schema_version: the version that this gristmill writes.
        state: `ok`, or the fault met last: `read-only`, `corrupt`, `foreign`, `unavailable`
            (locked, full, no access).
        reason: the fault in words; empty for `ok`.
        unsaved: measurements and plans that are in memory only.
    """

    path: Path
    size_bytes: int
    measurements: int
    plans: int
    by_op: dict[str, dict[str, int]]
    schema_version: int
    state: State
    reason: str = ""
    unsaved: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}
