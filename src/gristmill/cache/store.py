"""The plan store: measurements and the plans derived from them, in memory above SQLite.

    store().plan("rms_norm", bucket.key, target.key, "eager")   # a Plan or None, then remembered
    store().record(measurements)

`<cache_dir>/plans.sqlite3`, or on a network file system a folder of shards, has one row per
measurement and one per plan. A fault of the file (damaged, locked, read-only, full, of another
version) never reaches a caller: reads find nothing, writes stay in memory and go to the file with
the next write that works, and one `CacheWarning` per store and kind of fault says so. A damaged
file is moved aside; a file of another schema version is left as it is, and
`plans-v<version>.sqlite3` beside it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gristmill import settings
from gristmill.cache import forks, rows
from gristmill.cache.backend import open_backend
from gristmill.cache.clock import Clock
from gristmill.cache.faults import CacheWarning, Kind, StoreFault
from gristmill.cache.summary import StoreSummary
from gristmill.core.plan import Measurement, Objective, Plan
from gristmill.core.provenance import provenance
from gristmill.core.registry import first_current
from gristmill.errors import CacheError
from gristmill.record import record

__all__ = ["CacheWarning", "PlanStore", "StoreSummary", "store"]

POLL_S = 0.1
TABLES = ("measurements", "plans")
_UNREAD: Any = object()
PlanKey = tuple[str, str, str, str]  # op, bucket, target, objective
T = TypeVar("T")


@record(eq=False)
class _UnsavedPlan:
    plan: Plan
    family: str
    axes: dict[str, int]
    row: tuple[Any, ...]


class PlanStore:
    """The store in one folder. Safe to use from any thread and after a fork; no method raises for a
    fault of the file unless it says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Readers do not wait for a writer that waits for another process. Order: writing or
        # reading, then memory.
        self.locks = (threading.RLock(), threading.RLock(), threading.RLock())
        self._writing, self._reading, self._memory = self.locks
        self._database = open_backend(folder, self._warn)
        self._known: dict[PlanKey, Plan | None] = {}
        self._unsaved_plans: dict[PlanKey, _UnsavedPlan] = {}
        self._unsaved_measurements: list[tuple[Measurement, tuple[Any, ...]]] = []
        self._leased: dict[str, tuple[int, str]] = {}  # by key: whose, under which token
        self._ended: list[tuple[str, str]] = []  # key and token of leases to give back
        self._warned: set[Kind] = set()
        self._fault: StoreFault | None = None
        self._clock = Clock()
        forks.wait_for(self)

    def plan(self, op: str, bucket_key: str, target_key: str, objective: Objective) -> Plan | None:
        """The plan kept for a bucket: of a kernel as it is here before one that has changed; of
        these versions before one of others (then `revalidate` is set), as environments that share
        a folder keep theirs; the latest.

        What was read once is remembered, that there is none included: see `forget`.
        """
        key = (op, bucket_key, target_key, objective)
        known = self._known.get(key, _UNREAD)
        if known is not _UNREAD:
            return known
        found = self._rows(
            "SELECT * FROM plans WHERE op = ? AND bucket = ? AND target = ? AND objective = ? "
            "ORDER BY provenance = ? DESC, created_at DESC",
            (*key, provenance()),
        )
        if found is None:
            return None  # and not remembered: the file may recover
        plans = [p for p in map(self._plan, found) if p is not None]
        plan = first_current(plans, lambda p: p) if plans else None
        with self._memory:
            return self._known.setdefault(key, plan)

    def family(
        self, op: str, family: str, target_key: str, objective: Objective
    ) -> list[tuple[dict[str, int], Plan]]:
        """The plans of a family of buckets (`Bucket.family`), each with its axes' sizes."""
        key = (op, family, target_key, objective)
        where = "op = ? AND family = ? AND target = ? AND objective = ?"
        kept: dict[str, list[tuple[dict[str, int], Plan]]] = {}
        query = f"SELECT * FROM plans WHERE {where} ORDER BY provenance = ?, created_at"
        for row in self._rows(query, (*key, provenance())) or ():
            axes, plan = self._decode(row, rows.axes), self._plan(row)
            if plan is not None and axes is not None:
                kept.setdefault(plan.bucket, []).append((axes, plan))
        found = {
            bucket: first_current(of[::-1], lambda pair: pair[1]) for bucket, of in kept.items()
        }
        with self._memory:
            for unsaved in self._unsaved_plans.values():
                plan = unsaved.plan
                if (plan.op, unsaved.family, plan.target, plan.objective) == key:
                    found[plan.bucket] = (unsaved.axes, plan)
        return list(found.values())

    def save_plan(self, plan: Plan, family: str, axes: Mapping[str, int]) -> None:
        """Keep a plan in place of the one that its bucket had."""
        plan = dataclasses.replace(plan, revalidate=plan.provenance != provenance())
        row = rows.plan_row(plan, family, axes, self.now())
        with self._memory:
            self._unsaved_plans[_key(plan)] = _UnsavedPlan(plan, family, dict(axes), row)
            self._known[_key(plan)] = plan
        self._save()

    def now(self) -> float:
        """The time to stamp a measurement with: later than what this store has read or given, so
        that the latest measurement is that, though a clock was set back or another machine's is
        ahead."""
        return self._clock.now()

    def record(self, measurements: Sequence[Measurement]) -> None:
        """Keep measurements."""
        entries = [(m, rows.measurement_row(m)) for m in measurements]
        with self._memory:
            self._unsaved_measurements.extend(entries)
        self._save()

    def measurements(self, op: str, bucket_key: str, target_key: str) -> list[Measurement]:
        """What was measured for a bucket: the latest of each candidate, source, provenance and
        problem. `latest_of_each` has one of a candidate."""
        query = "SELECT * FROM measurements WHERE op = ? AND bucket = ? AND target = ?"
        key = (op, bucket_key, target_key)
        read = self._rows(f"{query} ORDER BY measured_at, id", key) or ()
        found = [self._decode(row, rows.measurement) for row in read]
        with self._memory:
            found += [m for m, _ in self._unsaved_measurements if (m.op, m.bucket, m.target) == key]
        latest: dict[tuple[str, ...], Measurement] = {}
        for m in found:
            if m is not None:
                name, config = m.candidate.implementation, m.candidate.config.key
                identity = (name, config, m.source_hash, m.provenance, m.problem)
                if identity not in latest or m.measured_at >= latest[identity].measured_at:
                    latest[identity] = m
        return list(latest.values())

    def plans(self) -> list[Plan]:
        """Every plan, those in memory only included."""
        query = "SELECT * FROM plans ORDER BY op, bucket, target, objective"
        merged = {_key(p): p for p in map(self._plan, self._rows(query) or ()) if p is not None}
        with self._memory:
            merged.update({key: unsaved.plan for key, unsaved in self._unsaved_plans.items()})
        return list(merged.values())

    def summary(self) -> StoreSummary:
        """What the store holds, and the state of its file (looked at now)."""
        self._fault = None
        self._save()
        if self._fault is None and self._database.exists():
            self._try(self._database.touch)
        counts: dict[str, dict[str, int]] = {}
        for table in TABLES:
            query = f"SELECT op, count(*) AS n FROM {table} GROUP BY op ORDER BY op"
            for row in self._rows(query) or ():
                counts.setdefault(str(row["op"]), dict.fromkeys(TABLES, 0))[table] = row["n"]
        state, reason = (
            ("foreign", self._database.foreign) if self._database.foreign else ("ok", "")
        )
        if self._fault is not None:
            state, reason = self._fault.state, self._fault.message
        return StoreSummary(
            path=self._database.path,
            size_bytes=self._database.size_bytes(),
            measurements=sum(c["measurements"] for c in counts.values()),
            plans=sum(c["plans"] for c in counts.values()),
            by_op=counts,
            schema_version=rows.SCHEMA_VERSION,
            state=state,
            reason=reason,
            unsaved=len(self._unsaved_plans) + len(self._unsaved_measurements),
        )

    def prune(
        self,
        *,
        older_than_s: float | None = None,
        op: str | None = None,
        keep_sources: Collection[str] | None = None,
        everything: bool = False,
    ) -> int:
        """Remove the measurements and plans that every given criterion selects; returns how many
        rows.

        Args:
            older_than_s: made longer ago than this.
            op: of this op.
            keep_sources: of implementations whose source hash is none of these.
            everything: needed to remove all rows, with no criterion.

        Raises:
            CacheError: the file cannot be changed.
        """
        now = time.time()
        if not everything and older_than_s is None and op is None and keep_sources is None:
            return 0

        def chosen(name: str, source: str, made: float) -> bool:
            return (
                (older_than_s is None or now - made > older_than_s)
                and (op is None or name == op)
                and (keep_sources is None or source not in keep_sources)
            )

        self._save()
        try:
            with self._writing:
                removed = self._database.remove(chosen)
        except StoreFault as fault:
            raise CacheError(
                f"the plan store {self._database.path} cannot be pruned: {fault}. "
                "Make the file and its folder writable, or set GRISTMILL_CACHE_DIR elsewhere."
            ) from fault
        self.forget()
        return removed

    @contextlib.contextmanager
    def lease(self, key: str, timeout_s: float = 0) -> Iterator[bool]:
        """Whether this caller alone may work on `key` until the block ends; waits up to `timeout_s`
        for its turn.

        A holder whose process is gone is replaced, and one that cannot be looked at from here if it
        kept nothing for ten minutes. Where the file cannot be written every process is on its own
        and gets its turn. Plans are read anew in the block: the holder before may have saved one.
        """
        token, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
        while not (taken := self._acquire(key, token)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self.forget()
        try:
            yield taken
        finally:
            if taken:
                self._release(key, token)

    def forget(self) -> None:
        """Drop what was read from the file, so that it is read again; what is in memory only
        stays."""
        with self._memory:
            self._known = {key: unsaved.plan for key, unsaved in self._unsaved_plans.items()}

    def close(self) -> None:
        """Write what is still in memory only, if the file takes it now. The store can be used
        again."""
        self._save()
        self.forget()

    def _acquire(self, key: str, token: str) -> bool:
        with self._writing:
            self._end_leases()
            if self._mine(key):
                return False
            if self._try(lambda: self._database.acquire(key, token)) is False:
                return False
            self._leased[key] = (os.getpid(), token)
            return True

    def _release(self, key: str, token: str) -> None:
        with self._writing:
            if self._mine(key):  # a forked child that leaves the block ends no turn
                del self._leased[key]
                self._ended.append((key, token))
                self._end_leases()

    def _end_leases(self) -> None:
        """Give back what has ended; on a fault, with the next write. This process may live on for
        weeks, and while it lives nobody else would take them."""
        for ended in list(self._ended):
            if self._try(lambda ended=ended: self._database.release(*ended) is None):
                self._ended.remove(ended)

    def _mine(self, key: str) -> bool:
        return key in self._leased and self._leased[key][0] == os.getpid()

    def _save(self) -> None:
        """Write what is in memory only; on a fault it stays there for the next time."""
        with self._writing:
            with self._memory:
                measurements, plans = list(self._unsaved_measurements), dict(self._unsaved_plans)
            if not measurements and not plans:
                return
            tables = [row for _, row in measurements], [plan.row for plan in plans.values()]
            tokens = [token for pid, token in self._leased.values() if pid == os.getpid()]
            if not self._try(lambda: self._database.append(*tables, tokens) is None):
                return
            with self._memory:
                del self._unsaved_measurements[: len(measurements)]
                for key, saved in plans.items():
                    if self._unsaved_plans[key] is saved:
                        del self._unsaved_plans[key]
            self._end_leases()

    def _try(self, work: Callable[[], T]) -> T | None:
        """What `work` gives, or `None` on a fault."""
        with self._writing:
            try:
                result = work()
            except StoreFault as fault:
                self._met(fault)
                return None
            self._fault = None
            return result

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[rows.Row] | None:
        """What a query gives, or `None` on a fault."""
        with self._reading:
            try:
                found = self._database.rows(query, values)
            except StoreFault as fault:
                self._met(fault)
                return None
        for row in found:
            self._see(row)
        return found

    def _see(self, row: rows.Row) -> None:
        """Let the clock know a row's stamp."""
        names = row.keys()
        for name in ("measured_at", "created_at"):
            if name in names and isinstance(row[name], float):
                self._clock.see(row[name])

    def _plan(self, row: rows.Row) -> Plan | None:
        return self._decode(row, lambda r: rows.plan(r, provenance()))

    def _decode(self, row: rows.Row, decode: Callable[[rows.Row], T]) -> T | None:
        try:
            return decode(row)
        except (ValueError, TypeError, IndexError, RecursionError) as error:
            self._warn(
                "row", f"a row is damaged or of another version, and counts as missing ({error})"
            )
            return None

    def _met(self, fault: StoreFault) -> None:
        self._fault = fault
        consequence = (
            "What cannot be read counts as missing, what cannot be written stays in memory"
        )
        self._warn(fault.kind, f"{fault.message}. {consequence}")

    def _warn(self, kind: Kind, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            text = f"plan store {self._database.path} ({kind}): {message}."
            warnings.warn(f"{text} `gristmill cache show` tells more.", CacheWarning, stacklevel=2)


def _key(plan: Plan) -> PlanKey:
    return (plan.op, plan.bucket, plan.target, plan.objective)


_stores: dict[Path, PlanStore] = {}


def store() -> PlanStore:
    """The store of the settings' cache folder: one per folder and process."""
    folder = settings.current().cache_dir.absolute()
    found = _stores.get(folder)
    if found is None:
        made = PlanStore(folder)
        with forks.REGISTRY:
            found = _stores.setdefault(folder, made)
    return found
