"""Explanation of a selection: every candidate with its time and error, and why it was chosen or
not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gristmill import cache
from gristmill.cache.evidence import kept_run
from gristmill.core.op import Op
from gristmill.core.plan import INTERRUPTED, Measurement, Objective, Plan, latest_of_each
from gristmill.core.problem import Problem
from gristmill.core.provenance import changed_since, provenance
from gristmill.core.registry import implementations
from gristmill.core.target import Target
from gristmill.measure.conditions import Conditions
from gristmill.selection.frozen import active
from gristmill.selection.select import select

ROWS = 20  # measured candidates that the text shows; `rows` has all
ENUMERATED_POINTS = 20_000  # points of a space whose rejections are counted


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate, or one implementation that has none here."""

    implementation: str
    config: dict[str, Any]
    status: str
    chosen: bool = False
    device_us: float | None = None
    host_us: float | None = None
    graph_us: float | None = None
    error: float | None = None
    registers: int | None = None
    spills: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a problem's plan is what it is. `str()` is a table; `to_json()` has everything.

    Attributes:
        plan: the plan in force.
        rows: the chosen candidate first, then by time; failures and what cannot run here last, each
            with its reason.
        rejections: for each implementation, how many points of its space each constraint rejects.
        frozen_to: the lock file that the plan is from, where plans are frozen.
        conditions: under which the bucket's last run here measured, where that is known.
    """

    problem: str
    target: str
    objective: Objective
    plan: Plan
    rows: tuple[Row, ...]
    rejections: dict[str, dict[str, int]]
    frozen_to: str = ""
    conditions: Conditions | None = None

    def to_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "problem": self.problem,
            "target": self.target,
            "objective": self.objective,
            "plan": {
                "implementation": plan.candidate.implementation,
                "config": plan.candidate.config.knobs,
                "origin": plan.origin,
                "reason": plan.reason,
                "bucket": plan.bucket,
                "revalidate": plan.revalidate,
                "changed": changed_since(plan.provenance) if plan.revalidate else "",
            },
            "rows": [asdict(row) for row in self.rows],
            "rejections": self.rejections,
            "frozen_to": self.frozen_to,
            "conditions": None if self.conditions is None else self.conditions.to_json(),
        }

    def __str__(self) -> str:
        plan = self.plan
        lines = [
            f"{self.problem} on {self.target}, objective {self.objective}",
            f"plan: {plan.candidate} ({plan.origin}: {plan.reason})",
        ]
        if self.frozen_to:
            lines.append(f"plans are frozen to {self.frozen_to}")
        if plan.provenance == INTERRUPTED:
            lines.append("its search was interrupted: the next get_op goes on with it")
        elif plan.revalidate:
            changed = changed_since(plan.provenance)
            lines.append(
                f"measured under other versions{changed and f' ({changed})'}: it is used as it is "
                "until get_op has measured the best few again; tune again to be sure"
            )
        if self.conditions is not None:
            lines += filter(None, (str(self.conditions), *self.conditions.warnings))
        lines += ["", *_table(self.rows[:ROWS])]
        if len(self.rows) > ROWS:
            lines.append(f"... and {len(self.rows) - ROWS} more")
        for name, reasons in self.rejections.items():
            for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
                lines.append(f"{name}: {count} points rejected: {reason}")
        return "\n".join(lines)


HEADINGS = (
    "",
    "implementation",
    "device us",
    "host us",
    "graph us",
    "error/bound",
    "regs",
    "status",
    "note",
)


def cells(row: Row) -> tuple[str, ...]:
    """A row's cells, as text, under `HEADINGS`."""

    def number(value: float | None, digits: int = 2) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    config = " ".join(f"{k}={v}" for k, v in row.config.items())
    note = "; ".join(filter(None, (config, row.note)))
    registers = (
        ""
        if row.registers is None
        else f"{row.registers}" + (f"+{row.spills}sp" if row.spills else "")
    )
    times = (number(row.device_us), number(row.host_us), number(row.graph_us), number(row.error))
    return (">" if row.chosen else "", row.implementation, *times, registers, row.status, note)


def _table(rows: Sequence[Row]) -> list[str]:
    table = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADINGS) - 1)]

    def text(line: tuple[str, ...]) -> str:
        aligned = (
            c.rjust(w) if 2 <= i <= 6 else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=False))
        )
        return "  ".join((*aligned, line[-1])).rstrip()

    return [text(line) for line in table]


def explain_problem(op: Op, problem: Problem, target: Target, objective: Objective) -> Explanation:
    """Why `select` chooses what it chooses, from the store's measurements. Measures nothing."""
    plan = select(op, problem, target, objective, to_run=False)
    bucket = op.bucket(problem)
    where = (op.name, bucket.key, target.key)
    measured = cache.store().measurements(*where) or cache.shipped_plans(target.key).measurements(
        *where
    )
    current = {i.name: i.source_hash for i in implementations(op.name)}
    one_each = latest_of_each(measured, provenance())
    fresh = [m for m in one_each if current.get(m.candidate.implementation) == m.source_hash]
    fresh.sort(
        key=lambda m: (
            m.candidate != plan.candidate,
            not m.outcome.ok,
            m.outcome.time_us(objective),
        )
    )
    rows = [_row(m, plan, objective) for m in fresh]
    seen = {m.candidate.implementation for m in fresh}
    rejections: dict[str, dict[str, int]] = {}
    for impl in implementations(op.name):
        reason = impl.why_not(problem, target)
        if reason is not None:
            rows.append(Row(impl.name, {}, "unsupported", note=reason))
        elif impl.name not in seen:
            rows.append(_unmeasured(impl.name, plan, objective))
        if reason is None and (counts := impl.space.rejections(problem, target, ENUMERATED_POINTS)):
            rejections[impl.name] = dict(counts)
    rows.sort(key=lambda row: not row.chosen)
    lock = active()
    return Explanation(
        str(problem),
        target.label,
        objective,
        plan,
        tuple(rows),
        rejections,
        "" if lock is None else str(lock.path),
        _conditions(where) if lock is None else None,
    )


def _conditions(where: tuple[str, str, str]) -> Conditions | None:
    """The conditions of the last run here, or `None` where none is known, or it is of a version
    that this one cannot read."""
    run = kept_run(cache.store().folder, where)
    try:
        return None if run is None else Conditions.from_json(run["conditions"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _unmeasured(name: str, plan: Plan, objective: Objective) -> Row:
    """An implementation without a measurement here: the plan's own, of a pack or a lock file, says
    what it was chosen for."""
    if plan.candidate.implementation != name:
        return Row(name, {}, "not measured", note="tune this problem to have it measured")
    if plan.origin == "tuned" and plan.evidence is not None:
        m = Measurement(
            plan.op, plan.candidate, plan.source_hash, plan.bucket, plan.target, "", plan.evidence
        )
        return _row(m, plan, objective)
    return Row(name, dict(plan.candidate.config.knobs), "not measured", chosen=True)


def _row(measurement: Measurement, plan: Plan, objective: Objective) -> Row:
    outcome, candidate = measurement.outcome, measurement.candidate
    chosen = candidate == plan.candidate
    note = plan.reason if chosen else outcome.reason
    if not chosen and outcome.ok and plan.evidence is not None:
        note = _versus(outcome.time_us(objective), plan.evidence.time_us(objective))
    return Row(
        candidate.implementation,
        dict(candidate.config.knobs),
        outcome.status,
        chosen,
        outcome.device_us,
        outcome.host_us,
        outcome.graph_us,
        outcome.error,
        outcome.registers,
        outcome.spills,
        note,
    )


def _versus(time_us: float, best_us: float) -> str:
    return f"{time_us / best_us:.2f}x the plan's time"
