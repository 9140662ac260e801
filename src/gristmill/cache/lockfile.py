"""Lock files: the plans that a process is frozen to, as one readable JSON document.

    {"format": "gristmill-lock", "version": 1, "strict": false, "plans": [{"op": "matmul", ...}]}

A plan has the columns that it has in a pack, and the source of its fallback, so that nothing but
the file decides what runs. Plans are sorted by op, target, bucket and objective; where a bucket has
several (a kernel may refuse one of its problems), the first that can run a problem is its plan.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.cache import packs
from gristmill.cache.packs import KeptPlan
from gristmill.core.plan import Candidate, Objective, Plan
from gristmill.core.provenance import library_version
from gristmill.core.registry import is_current
from gristmill.core.target import device_name
from gristmill.errors import FrozenError

FORMAT, VERSION = "gristmill-lock", 1
ADVICE = "Freeze again with `gristmill.freeze` or `gristmill freeze`"


@dataclass(frozen=True, slots=True)
class LockedPlan:
    """A plan in a lock file.

    Attributes:
        kept: the plan, with its family and sizes.
        fallback_source: the source hash of the plan's fallback, where it may be used.
    """

    kept: KeptPlan
    fallback_source: str | None = None

    @property
    def plan(self) -> Plan:
        return self.kept.plan

    def vouches(self, plan: Plan, fallback: Candidate) -> bool:
        """Whether the plan's fallback has the source that it had."""
        source = self.fallback_source
        return source is not None and is_current(plan.op, fallback.implementation, source)


class Lock:
    """The plans of a lock file, which nothing changes."""

    def __init__(
        self, path: Path, plans: Iterable[LockedPlan], strict: bool = False, made_by: str = ""
    ) -> None:
        """`strict`: what is not in it is refused."""
        self.path, self.strict, self.made_by = path, strict, made_by or library_version()
        # sorted() is stable: within a bucket the order is the caller's.
        self.plans = tuple(sorted(plans, key=lambda p: _bucket(p.plan)))
        self._found: dict[tuple[str, ...], list[LockedPlan]] = defaultdict(list)
        self._families: dict[tuple[str, ...], list[LockedPlan]] = defaultdict(list)
        for p in self.plans:
            self._found[_bucket(p.plan)].append(p)
            if p.plan.origin == "tuned":
                family = (p.plan.op, p.plan.target, p.kept.family, p.plan.objective)
                self._families[family].append(p)

    @property
    def targets(self) -> tuple[str, ...]:
        """The keys of the devices that it has plans for."""
        return tuple(sorted({p.plan.target for p in self.plans}))

    def of(self, op: str, target: str, bucket: str, objective: Objective) -> list[LockedPlan]:
        """The plans of a bucket, in their order."""
        return self._found.get((op, target, bucket, objective), [])

    def family(self, op: str, target: str, family: str, objective: Objective) -> list[LockedPlan]:
        """The measured plans of a family of buckets."""
        return self._families.get((op, target, family, objective), [])

    def stale(self) -> Iterator[Plan]:
        """The plans whose implementations are not here, or not with the source they had."""
        return (p.plan for p in self.plans if not p.kept.is_current)

    def write(self) -> None:
        """Write the file, whole or not at all.

        Raises:
            FrozenError: it cannot be written there.
        """
        document = {
            "format": FORMAT,
            "version": VERSION,
            "gristmill": self.made_by,
            "strict": self.strict,
            "devices": sorted({device_name(t) for t in self.targets}),
            "plans": [_encoded(p) for p in self.plans],
        }
        try:
            packs.write_whole(self.path, json.dumps(document, indent=1) + "\n")
        except OSError as error:
            raise FrozenError(
                f"the lock file `{self.path}` cannot be written ({error.strerror or error}); "
                "nothing is frozen. Name a file in a folder that exists and can be written to."
            ) from error


def read_lock(path: Path) -> Lock:
    """The lock in a file.

    Raises:
        FrozenError: there is none, or it is damaged or of another version.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FrozenError(
            f"the lock file `{path}` does not exist; this process was told to run its plans only. "
            f"{ADVICE}, or unset GRISTMILL_LOCK_FILE."
        ) from None
    except (OSError, ValueError) as error:
        raise FrozenError(f"the lock file `{path}` cannot be read: {error}. {ADVICE}.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise FrozenError(f'`{path}` is no lock file: its format is not "{FORMAT}". {ADVICE}.')
    if data.get("version") != VERSION:
        raise FrozenError(
            f"the lock file `{path}` has version {data.get('version')} (gristmill "
            f"{data.get('gristmill')}); this one reads {VERSION}. {ADVICE}."
        )
    strict, entries = data.get("strict"), data.get("plans")
    if not isinstance(strict, bool) or not isinstance(entries, list):
        raise FrozenError(
            f"the lock file `{path}` is damaged: it needs `strict`, true or false, and `plans`, a "
            f"list. {ADVICE}."
        )
    plans = []
    for number, entry in enumerate(entries):
        try:
            plans.append(_decoded(entry))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise FrozenError(
                f"plan {number} (from 0) of the lock file `{path}` is damaged: {error}. {ADVICE}."
            ) from error
    return Lock(path, plans, strict, str(data.get("gristmill")))


def _bucket(plan: Plan) -> tuple[str, ...]:
    return (plan.op, plan.target, plan.bucket, plan.objective)


def _encoded(locked: LockedPlan) -> dict[str, Any]:
    data = packs.plan_json(locked.kept)
    del data["created_at"]  # the same plans give the same bytes
    if locked.fallback_source is not None:
        data["fallback_source_hash"] = locked.fallback_source
    return data


def _decoded(entry: Any) -> LockedPlan:
    if not isinstance(entry, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - one kind of error for every damaged plan
    source = entry.get("fallback_source_hash")
    if not isinstance(source, (str, type(None))):
        raise ValueError(f"fallback_source_hash {source!r}")  # noqa: TRY004 - as above
    columns = {name: value for name, value in entry.items() if name != "fallback_source_hash"}
    return LockedPlan(packs.plan_of_json({**columns, "created_at": 0.0}), source)
