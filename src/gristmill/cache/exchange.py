"""Packs out of a plan store and into one."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeVar

from gristmill.cache import packs, rows
from gristmill.cache.faults import StoreFault
from gristmill.cache.packs import KeptPlan, Pack
from gristmill.cache.store import PlanStore
from gristmill.core.plan import INTERRUPTED, Candidate, Measurement
from gristmill.core.registry import is_current
from gristmill.core.target import device_name
from gristmill.errors import CacheError, InvalidInputError

Key = tuple[Any, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Exported:
    """What went into a pack.

    Attributes:
        pack: the rows.
        left_out: how many rows did not, by the reason.
    """

    pack: Pack
    left_out: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**self.pack.header(), "left_out": self.left_out}


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import changed.

    Attributes:
        plans, measurements: rows that are new in the store.
        kept: rows of the pack in whose place the store has its own.
        stale: plans of the pack whose implementations are others here: they are kept for the
            versions that have them, and nothing here uses them.
    """

    plans: int
    measurements: int
    kept: int
    stale: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def collect(
    store: PlanStore,
    *,
    op: str | None = None,
    device: str | None = None,
    plans_only: bool = False,
) -> Exported:
    """What a store holds, as a pack: every plan, and the latest of each measurement under each
    provenance.

    Args:
        op: of this op only.
        device: of the devices only whose name or target has this in it, or matches it as a pattern.
        plans_only: the plans that can be used here (no interrupted search, the implementation's
            source as it is), each with the measurements of its choice and its fallback.

    Raises:
        InvalidInputError: nothing in the store is of that op and device.
        CacheError: the store cannot be read, or has rows that it could not write yet.
    """
    left_out: Counter[str] = Counter()
    whole = contents(store, left_out)
    plans, measurements = list(whole.plans), list(whole.measurements)
    ops = {p.plan.op for p in plans} | {m.op for m in measurements}
    targets = {p.plan.target for p in plans} | {m.target for m in measurements}
    chosen = {t for t in targets if device is None or _names(device, t)}
    plans = [p for p in plans if op in (None, p.plan.op) and p.plan.target in chosen]
    measurements = [m for m in measurements if op in (None, m.op) and m.target in chosen]
    if plans_only:
        ended = [p for p in plans if p.plan.provenance != INTERRUPTED]
        left_out["of interrupted searches"] += len(plans) - len(ended)
        plans = [p for p in ended if p.is_current]
        left_out["of other versions of their kernels"] += len(ended) - len(plans)
        measurements = _beneath(plans, measurements)
    if not plans and not measurements:
        held = ", ".join(sorted(ops)) or "nothing"
        where = ", ".join(sorted(map(device_name, targets))) or "no device"
        raise InvalidInputError(
            f"`{store.folder}` has nothing to export of op {op or '(any)'} and device "
            f"{device or '(any)'}{' that can be used here' if plans_only else ''}; it holds {held} "
            f"of {where}. Name one of these, or tune first."
        )
    return Exported(
        Pack(tuple(plans), tuple(measurements)), {k: n for k, n in left_out.items() if n}
    )


def bring(store: PlanStore, pack: Pack) -> Imported:
    """Put a pack's rows into a store, all of them or, where anything fails, none.

    What the store has of the same identity and provenance stays: what was measured here is not
    overruled by what was measured elsewhere. Only a plan of another source than the one here makes
    room for one of this source.

    Raises:
        CacheError: the store cannot be written.
    """
    done = Imported(0, 0, 0, 0)

    def choose(read: Callable[[str], Sequence[rows.Row]]) -> _New:
        nonlocal done
        new, done = _missing(pack, read)
        return new

    store.close()  # what is in memory only is the user's own: it goes first
    try:
        with store.locks[0]:
            store._database.extend(choose)
    except StoreFault as fault:
        raise CacheError(
            f"nothing was imported: the plan store in {store.folder} cannot be written: {fault}. "
            "Make the file and its folder writable, or set GRISTMILL_CACHE_DIR elsewhere."
        ) from fault
    store.forget()
    return done


class _New(NamedTuple):
    """Values of the store's columns."""

    measurements: list[tuple[Any, ...]]
    plans: list[tuple[Any, ...]]


def _missing(pack: Pack, read: Callable[[str], Sequence[rows.Row]]) -> tuple[_New, Imported]:
    """The rows of a pack for which a store, whose rows `read` gives, has none of its own."""
    have = {_key(row, packs.PLAN_KEY): row for row in read("SELECT * FROM plans")}
    plans = []
    for kept in pack.plans:
        mine = have.get(_key(kept.row, packs.PLAN_KEY))
        if mine is None or (
            kept.is_current
            and not is_current(kept.plan.op, mine["implementation"], mine["source_hash"])
        ):
            plans.append(tuple(kept.row.values()))
    key = packs.MEASUREMENT_KEY
    known = {_key(row, key) for row in read(f"SELECT {', '.join(key)} FROM measurements")}
    found = map(packs.measurement_row, pack.measurements)
    measurements = [tuple(row.values()) for row in found if _key(row, key) not in known]
    kept_here = len(pack.plans) + len(pack.measurements) - len(plans) - len(measurements)
    stale = sum(not kept.is_current for kept in pack.plans)
    return _New(measurements, plans), Imported(len(plans), len(measurements), kept_here, stale)


def contents(store: PlanStore, left_out: Counter[str] | None = None) -> Pack:
    """Every plan of a store, and the latest measurement of each key; damaged rows are counted in
    `left_out`.

    Raises:
        CacheError: the store cannot be read, or has rows that it could not write yet.
    """
    left_out = Counter() if left_out is None else left_out
    store.close()
    unsaved = len(store._unsaved_plans) + len(store._unsaved_measurements)
    if unsaved:
        raise CacheError(
            f"{unsaved} rows are in memory only: the plan store in {store.folder} cannot be "
            "written. Make the file and its folder writable, then export again."
        )
    try:
        with store.locks[1]:
            planned = store._database.rows("SELECT * FROM plans")
            measured = store._database.rows("SELECT * FROM measurements ORDER BY measured_at, id")
    except StoreFault as fault:
        raise CacheError(
            f"the plan store in {store.folder} cannot be read: {fault}. `gristmill cache show` "
            "tells more."
        ) from fault
    plans = _decoded(planned, packs.kept_plan, left_out)
    latest: dict[Key, Measurement] = {}
    for m in _decoded(measured, rows.measurement, left_out):
        latest[_key(packs.measurement_row(m), packs.MEASUREMENT_KEY)] = m
    return Pack(tuple(plans), tuple(latest.values()))


def _decoded(
    found: Sequence[rows.Row], decode: Callable[[rows.Row], T], left_out: Counter[str]
) -> list[T]:
    values = []
    for row in found:
        try:
            values.append(decode(row))
        except (ValueError, TypeError, IndexError, RecursionError):
            left_out["damaged or of another version"] += 1
    return values


def _beneath(plans: Sequence[KeptPlan], measurements: Sequence[Measurement]) -> list[Measurement]:
    """The measurements of what the plans chose and fall back to. The one of a fallback is what says
    that it may be used, and both are what is measured again after an upgrade."""
    wanted: set[tuple[str, str, str, Candidate | None]] = set()
    for p in plans:
        for candidate in (p.plan.candidate, p.plan.fallback):
            wanted.add((p.plan.op, p.plan.bucket, p.plan.target, candidate))
    return [
        m
        for m in measurements
        if (m.op, m.bucket, m.target, m.candidate) in wanted
        and m.outcome.ok
        and is_current(m.op, m.candidate.implementation, m.source_hash)
    ]


def _names(pattern: str, target: str) -> bool:
    """Whether a user's word for a device means a target."""
    asked, whole = pattern.lower(), target.lower()
    name = device_name(whole)
    return asked in whole or fnmatch.fnmatchcase(whole, asked) or fnmatch.fnmatchcase(name, asked)


def _key(row: rows.Row, names: Sequence[str]) -> Key:
    return tuple(row[name] for name in names)
