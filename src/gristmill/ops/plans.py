"""Plans as files: packs to carry them, and lock files to hold a process to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import torch

from gristmill import settings
from gristmill.cache import exchange, packs
from gristmill.cache.exchange import Exported, Imported
from gristmill.cache.lockfile import Lock, LockedPlan, read_lock
from gristmill.cache.packs import KeptPlan
from gristmill.cache.shipped import PackedPlans, shipped_plans
from gristmill.cache.store import store
from gristmill.core.plan import KERNEL, Candidate, Plan
from gristmill.core.registry import implementation
from gristmill.core.target import device_target
from gristmill.errors import FrozenError, InvalidInputError
from gristmill.ops._dispatch import forget
from gristmill.selection import frozen
from gristmill.selection.select import measured

LOCK_FILE = "gristmill-lock.json"
Frozen = Literal["used", "stored", "file"]


def export_plans(
    path: str | PathLike[str],
    *,
    op: str | None = None,
    device: str | None = None,
    plans_only: bool = False,
) -> Exported:
    """Write what the plan store holds to a pack: a text file, the same bytes for the same rows.

    Args:
        path: the file, written whole or not at all.
        op: of this op only (of a kernel of yours: `kernel:<module>.<name>`).
        device: of the devices only whose name or target has this in it, in any case, or matches it
            as a pattern: `"H200"`, `"cpu"`, `"*sm_90*"`.
        plans_only: plans that can be used by this version, each with the measurements of its choice
            and its fallback, in place of everything that was measured.

    Raises:
        InvalidInputError: nothing in the store is of that op and device.
        CacheError: the store cannot be read, or has rows that it could not write yet.
        PackError: the file cannot be written.
    """
    exported = exchange.collect(store(), op=op, device=device, plans_only=plans_only)
    exported.pack.write(Path(path))
    return exported


def import_plans(path: str | PathLike[str]) -> Imported:
    """Put a pack's plans and measurements into the plan store, all or none of them.

    What the store has of the same identity and provenance stays as it is: nothing that was measured
    here is overruled. Only a plan whose kernel has changed since makes room for one whose kernel
    has not. Calls that are bound already ask for their plans again.

    Raises:
        PackError: the pack is missing, damaged (the message names the line) or of another version.
        CacheError: the store cannot be written.
    """
    imported = exchange.bring(store(), packs.read(Path(path)))
    forget()
    return imported


def freeze(
    path: str | PathLike[str] | None = None,
    *,
    plans: Frozen = "used",
    strict: bool | None = None,
) -> Path:
    """Write a lock file, and from now on select from it alone: the same plans, bit for bit, until
    `thaw`. Nothing is tuned meanwhile.

    A process that is started with `GRISTMILL_LOCK_FILE` set to the file selects from it from its
    first call on. A bucket's plan holds for all of its problems. What the file has no plan for
    takes the nearest of its plans, as selection does elsewhere, or the untuned choice, which is
    said once an op (`FrozenWarning`). A plan of a kernel that has changed since is never run with
    the new code: it counts as missing, which is said too. Bound operators keep their plans.

    Args:
        path: the lock file, written whole or not at all. Default: the setting
            `GRISTMILL_LOCK_FILE`, else `gristmill-lock.json` in the current folder.
        plans: which to freeze: `used`, by this process so far, untuned choices included; `stored`,
            these and what the plan store and the shipped pack have for the devices in use; `file`,
            those that the file has already (nothing is written).
        strict: refuse with `FrozenError` what the file has no plan for, in place of the warning.
            Default: not, or as the file says.

    Returns:
        The lock file.

    Raises:
        FrozenError: there is nothing to freeze; the file cannot be written, or read.
    """
    if plans not in get_args(Frozen):
        raise InvalidInputError(
            f"`plans` is {plans!r}; it can be {', '.join(get_args(Frozen))}. Choose one."
        )
    where = Path(path) if path is not None else settings.current().lock_file or Path(LOCK_FILE)
    where = where.absolute()
    if plans == "file":
        lock = read_lock(where)
        if strict is not None:
            lock = Lock(where, lock.plans, strict, lock.made_by)
    else:
        lock = Lock(where, chosen(plans), bool(strict))
        lock.write()
    frozen.activate(lock)
    forget()
    return where


def thaw() -> None:
    """Select from the plan store again, and tune where that is asked for; the lock file stays."""
    frozen.activate(None)
    store().forget()
    forget()


def chosen(plans: Frozen, targets: Iterable[str] = ()) -> list[LockedPlan]:
    """The plans to freeze, for these targets and those in use.

    Raises:
        FrozenError: there are none.
    """
    used = [locked(KeptPlan(u.plan, u.family, u.axes, 0.0)) for u in frozen.used()]
    if plans == "used":
        found = used
    else:
        wanted = {*targets, *(p.plan.target for p in used)} or {device_target(_device()).key}
        have = {_key(p) for p in used if p.plan.origin == "tuned"}
        found = [p for p in _stored(wanted) if _key(p) not in have] + used
    if not found:
        none, advice = "this process has used no plan", "Call the ops that you will call"
        if plans != "used":
            none += ", and the plan store has none for its device"
            advice += " (`gristmill.get_op`), or tune first"
        else:
            advice += ', or freeze what the plan store has with `plans="stored"`'
        raise FrozenError(f"there is nothing to freeze: {none}. {advice}.")
    return found


def _stored(targets: set[str]) -> list[LockedPlan]:
    """What selection would find for these targets: the store's plan of a bucket, else a pack's."""
    user = PackedPlans(exchange.contents(store()))
    found: dict[tuple[str, ...], LockedPlan] = {}
    for target in sorted(targets):
        for layer in (shipped_plans(target), user):
            for kept in layer.kept:
                if kept.plan.target == target and kept.is_current:
                    plan = locked(kept, lambda *of, layer=layer: measured(layer, *of))
                    found[_key(plan)] = plan
    return list(found.values())


def locked(
    kept: KeptPlan, vouches: Callable[[Plan, Candidate], bool] = lambda plan, fallback: True
) -> LockedPlan:
    """A plan as a lock file has it, with its fallback's source if that may be used (by default it
    may: selection has looked already)."""
    plan, fallback = kept.plan, kept.plan.fallback
    if fallback is None:
        return LockedPlan(kept)
    if fallback == plan.candidate or plan.op.startswith(KERNEL):
        return LockedPlan(kept, plan.source_hash)
    if not vouches(plan, fallback):
        return LockedPlan(kept)
    return LockedPlan(kept, implementation(plan.op, fallback.implementation).source_hash)


def _key(of: LockedPlan) -> tuple[str, ...]:
    plan = of.plan
    return (plan.op, plan.target, plan.bucket, plan.objective)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
