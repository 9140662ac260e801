"""Which plans this process has used, and the lock that it is frozen to."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gristmill import settings
from gristmill.cache import lockfile
from gristmill.cache.lockfile import Lock, LockedPlan
from gristmill.cache.packs import KeptPlan, device_name
from gristmill.core.plan import KERNEL, Candidate, Plan
from gristmill.core.registry import implementation
from gristmill.errors import FrozenError

PREFERENCE = {"tuned": 0, "neighbour": 1, "prior": 2, "vendor": 2}


class FrozenWarning(UserWarning):
    """What runs is not from the lock file: it has no plan for what was asked, or one of other
    code."""


@dataclass(frozen=True, slots=True)
class _Used:
    """A plan that ran here.

    Attributes:
        octaves: how far the bucket is that it was measured for.
        turn: counts the uses.
    """

    kept: KeptPlan
    octaves: float
    turn: int

    @property
    def rank(self) -> tuple[float, ...]:
        """Which of a bucket's plans is tried first: the one measured for it, one measured near it,
        a rule's; the nearer, then the later."""
        return (PREFERENCE[self.kept.plan.origin], self.octaves, -self.turn)


# Both are read and changed by single operations of a dictionary, so no lock is held across a fork.
_used: dict[tuple[object, ...], _Used] = {}
_said: set[tuple[str, ...]] = set()
_turns = itertools.count()
_frozen: Lock | None = None  # by `freeze`, before what the settings say
_thawed: Path | None = None  # the settings' lock file, after `thaw`


def record(plan: Plan, family: str, axes: Mapping[str, int], octaves: float = 0.0) -> None:
    """Remember that this process uses a plan for its bucket: of the measured one the latest, of
    neighbours and rules one for each choice."""
    candidate = plan.candidate
    choices = {"tuned": None, "neighbour": candidate}
    choice = choices.get(plan.origin, candidate.implementation)
    key = (plan.op, plan.target, plan.bucket, plan.objective, plan.origin, choice)
    _used[key] = _Used(KeptPlan(plan, family, axes, 0.0), octaves, next(_turns))


def used() -> list[LockedPlan]:
    """What this process has used, a bucket's plans in the order in which they are tried."""
    return [locked(u.kept) for u in sorted(_used.values(), key=lambda u: u.rank)]


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


def forget_used() -> None:
    """Begin anew."""
    _used.clear()


def active() -> Lock | None:
    """The lock in force: of `freeze`, else of the settings' lock file, else none.

    Raises:
        FrozenError: the lock file is missing or damaged.
    """
    if _frozen is not None:
        return _frozen
    path = settings.current().lock_file
    return None if path is None or path == _thawed else _read(path)


def activate(lock: Lock | None) -> None:
    """Freeze to a lock, or thaw (`None`), whatever the settings say."""
    global _frozen, _thawed
    _frozen = lock
    _thawed = settings.current().lock_file if lock is None else None
    _said.clear()


def refuse_tuning(what: str) -> None:
    """Raise `FrozenError` where plans are frozen."""
    lock = active()
    if lock is not None:
        raise FrozenError(
            f"{what} is not tuned: plans are frozen to `{lock.path}`, which tuning would change. "
            "Call `gristmill.thaw()` (or unset GRISTMILL_LOCK_FILE), tune, then freeze again."
        )


def missing(lock: Lock, op: str, what: str, target: str) -> None:
    """What to do about a problem (`what`) of an op that a lock has no plan for: a strict one
    refuses, any other says so, once an op.

    Raises:
        FrozenError: the lock is strict.
    """
    fault = f"has no plan for {what} on {device_name(target)}"
    if lock.targets and target not in lock.targets:
        fault += f" (it is of {', '.join(sorted(map(device_name, lock.targets)))})"
    _object(lock, fault, ("missing", op, target))


def stale(lock: Lock, plan: Plan) -> None:
    """The same of a plan whose kernel is not the one that it was made for.

    Raises:
        FrozenError: the lock is strict.
    """
    name = f"{plan.op}/{plan.candidate.implementation}"
    fault = f"has a plan of {name} as it was in another version ({plan.source_hash})"
    _object(lock, fault, ("stale", name, plan.target))


def _object(lock: Lock, fault: str, what: tuple[str, ...]) -> None:
    text = f"the lock file `{lock.path}` (gristmill {lock.made_by}) {fault}"
    advice = "Freeze again with that problem in use (`gristmill.thaw()`, then `gristmill.freeze`)"
    if lock.strict:
        raise FrozenError(f"{text}, and it is strict: only its plans may run. {advice}.")
    if what not in _said:
        _said.add(what)
        warnings.warn(
            f"{text}. The nearest of its plans that can run is used, else the untuned choice; "
            f"nothing is tuned. {advice}.",
            FrozenWarning,
            stacklevel=4,
        )


@functools.lru_cache(maxsize=8)
def _read(path: Path) -> Lock:
    return lockfile.read(path)
