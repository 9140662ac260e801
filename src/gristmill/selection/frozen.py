"""Which plans this process has used, and the lock that it is frozen to."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill import cache, settings
from gristmill.core.plan import Objective, Plan
from gristmill.core.target import device_name
from gristmill.errors import FrozenError

if TYPE_CHECKING:  # most processes need no lock file
    from gristmill.cache.lockfile import Lock

PREFERENCE = {"tuned": 0, "neighbour": 1, "prior": 2, "vendor": 2}


class FrozenWarning(UserWarning):
    """What runs is not from the lock file: it has no plan for what was asked, or one of other
    code."""


class UsedPlan:
    """A plan that ran here, with its family of buckets and its bucketed sizes."""

    __slots__ = ("axes", "family", "plan", "rank")

    def __init__(
        self, plan: Plan, family: str, axes: Mapping[str, int], octaves: float, turn: int
    ) -> None:
        """`octaves`: how far the bucket is that it was measured for; `turn` counts the uses."""
        self.plan, self.family, self.axes = plan, family, axes
        # Which of a bucket's plans is tried first: the one measured for it, one measured near it,
        # a rule's; the nearer, then the later.
        self.rank = (PREFERENCE[plan.origin], octaves, -turn)


# Both are read and changed by single operations of a dictionary, so no lock is held across a fork.
_used: dict[tuple[object, ...], UsedPlan] = {}
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
    _used[key] = UsedPlan(plan, family, axes, octaves, next(_turns))


def forget_bucket(op: str, bucket_key: str, target_key: str) -> set[Objective]:
    """Drop what was used of a bucket before it was tuned; returns under which objectives it was in
    use."""
    objectives: set[Objective] = set()
    for key, found in list(_used.items()):
        plan = found.plan
        if (plan.op, plan.bucket, plan.target) == (op, bucket_key, target_key):
            _used.pop(key, None)
            objectives.add(plan.objective)
    return objectives


def used() -> list[UsedPlan]:
    """What this process has used, a bucket's plans in the order in which they are tried."""
    return sorted(_used.values(), key=lambda u: u.rank)


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


def unlockable(lock: Lock, op: str) -> None:
    """Say that no lock can have a plan of a kernel, once: a strict one that refused it could not be
    mended by freezing again."""
    if (what := ("unlockable", op)) not in _said:
        _said.add(what)
        warnings.warn(
            f"{op} runs its first config: the lock file `{lock.path}` has no plan of it, and can "
            "have none, because its source is not known. Define the kernel in a file.",
            FrozenWarning,
            stacklevel=4,
        )


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
    return cache.read_lock(path)
