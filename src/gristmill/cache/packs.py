"""Packs: plans and measurements as a text file, to be kept, compared and carried to other machines.

A pack is JSON Lines. The first line is a header: the format, its version, the gristmill that wrote
it, and what it holds. Each further line is one plan or one measurement, with the store's columns.
Lines are sorted, and a pack says nothing of when or where it was written: the same rows give the
same bytes, and a diff of two packs is a diff of their plans.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gristmill.cache import rows
from gristmill.core.plan import Measurement, Plan
from gristmill.core.provenance import library_version, provenance
from gristmill.core.registry import is_current
from gristmill.core.target import device_name
from gristmill.errors import PackError

FORMAT, VERSION = "gristmill-pack", 1
KINDS = {"plan": rows.PLAN_COLUMNS, "measurement": rows.MEASUREMENT_COLUMNS}
# Columns that hold JSON, as text in the store and as it is in a pack.
EMBEDDED = ("axes", "config", "fallback_config", "evidence", "outcome")
PLAN_KEY = ("op", "target", "bucket", "objective", "provenance")
MEASUREMENT_KEY = (
    "op", "target", "bucket", "implementation", "config", "source_hash", "provenance",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KeptPlan:
    """A plan with what the store keeps beside it: its family of buckets, the bucketed sizes, and
    when it was made (seconds since 1970)."""

    plan: Plan
    family: str
    axes: Mapping[str, int]
    created_at: float

    @property
    def row(self) -> dict[str, Any]:
        """The store's columns."""
        values = rows.plan_row(self.plan, self.family, self.axes, self.created_at)
        return dict(zip(rows.PLAN_COLUMNS, values, strict=True))

    @property
    def is_current(self) -> bool:
        """Whether the implementation is here, with the source that the plan was measured with."""
        plan = self.plan
        return is_current(plan.op, plan.candidate.implementation, plan.source_hash)

    @property
    def rank(self) -> tuple[Any, ...]:
        """Which of two plans for one bucket is kept: of sources as they are here, of more repeats,
        the newer."""
        repeats = self.plan.evidence.repeats if self.plan.evidence else 0
        return (self.is_current, repeats, self.created_at, line("plan", self.row))


@dataclass(frozen=True, slots=True)
class Pack:
    """Plans and measurements, at most one of a key."""

    plans: tuple[KeptPlan, ...] = ()
    measurements: tuple[Measurement, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The keys of the devices that it is about."""
        found = {p.plan.target for p in self.plans} | {m.target for m in self.measurements}
        return tuple(sorted(found))

    def header(self) -> dict[str, Any]:
        """What the first line says."""
        ops = {p.plan.op for p in self.plans} | {m.op for m in self.measurements}
        return {
            "format": FORMAT,
            "version": VERSION,
            "gristmill": library_version(),
            "devices": sorted({device_name(target) for target in self.targets}),
            "targets": list(self.targets),
            "ops": sorted(ops),
            "plans": len(self.plans),
            "measurements": len(self.measurements),
        }

    def text(self) -> str:
        """The file: sorted by op, target and bucket, a bucket's plans before its measurements."""
        entries = [("plan", p.row) for p in self.plans]
        entries += [("measurement", measurement_row(m)) for m in self.measurements]
        entries.sort(key=lambda e: (*(e[1][c] for c in PLAN_KEY[:3]), e[0] != "plan", line(*e)))
        lines = [_json(self.header()), *(line(kind, row) for kind, row in entries)]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            PackError: it cannot be written there.
        """
        try:
            write_whole(path, self.text())
        except OSError as error:
            raise PackError(
                f"`{path}` cannot be written ({error}); a pack is a file in a folder that exists. "
                "Name another one."
            ) from error


def measurement_row(m: Measurement) -> dict[str, Any]:
    """The store's columns of a measurement."""
    return dict(zip(rows.MEASUREMENT_COLUMNS, rows.measurement_row(m), strict=True))


def line(kind: str, row: Mapping[str, Any]) -> str:
    """One line of a pack."""
    return _json({"kind": kind, **_data(kind, row)})


def plan_json(kept: KeptPlan) -> dict[str, Any]:
    """A plan as a pack has it, without its kind."""
    return _data("plan", kept.row)


def plan_of_json(data: Any) -> KeptPlan:
    """The plan in what `plan_json` gives.

    Raises:
        ValueError, TypeError: a value is damaged or of a version that this one does not know.
    """
    return kept_plan(_row("plan", data))


def _data(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as an object; what is null is left out."""
    data: dict[str, Any] = {}
    for name in KINDS[kind]:
        value = row[name]
        if name in EMBEDDED and value is not None:
            value = _without_nulls(json.loads(value), keep=name.endswith("config"))
        elif name == "provenance":
            value = _opened(str(value))
        if value is not None:
            data[name] = value
    return data


def read(path: Path) -> Pack:
    """The pack in a file.

    Raises:
        PackError: there is none, or a line of it is damaged or of another version; the message
            names the line.
    """

    def refuse(number: int, fault: str) -> NoReturn:
        raise PackError(
            f"line {number} of `{path}` cannot be read: {fault}. A pack is what `gristmill cache "
            f"export FILE` of gristmill {library_version()} writes. Mend the line, or export again."
        )

    return parse(file_text(path), refuse)


def file_text(path: Path) -> str:
    """A pack's text.

    Raises:
        PackError: it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")  # one bad byte: one bad line
    except OSError as error:
        raise PackError(
            f"`{path}` cannot be read ({error.strerror or error}); a pack is a file that "
            "`gristmill cache export FILE` writes. Name one."
        ) from error


def parse(text: str, refuse: Callable[[int, str], None]) -> Pack:
    """The pack in a text. `refuse` is told of each line that is no good, by its number from 1; if
    it returns, the line is left out (with the first line, everything)."""
    lines = text.splitlines()
    if fault := _header_fault(lines):
        refuse(1, fault)
        return Pack()
    plans: dict[tuple[str, ...], KeptPlan] = {}
    measurements: dict[tuple[str, ...], Measurement] = {}
    for number, entry in enumerate(lines[1:], start=2):
        try:
            kind, data = _entry(entry)
            row = _row(kind, data)
            if kind == "plan":
                _add(plans, PLAN_KEY, row, kept_plan(row))
            else:
                _add(measurements, MEASUREMENT_KEY, row, rows.measurement(row))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            refuse(number, str(error) or type(error).__name__)
    return Pack(tuple(plans.values()), tuple(measurements.values()))


def kept_plan(row: rows.Row) -> KeptPlan:
    """The plan in a row of the store.

    Raises:
        ValueError: a value is damaged or of a version that this one does not know.
    """
    plan, family = rows.plan(row, provenance()), row["family"]
    if not isinstance(family, str):
        raise ValueError(f"family {family!r}")  # noqa: TRY004 - one kind of error for every damaged row
    return KeptPlan(plan, family, rows.axes(row), rows.stamp(row["created_at"]))


def merge(packs: Sequence[Pack]) -> Pack:
    """One pack of several. Where two have a line of one key, that one is kept whose source is as it
    is here, then the one of more repeats, then the newer one; the order of the packs has no say."""
    plans: dict[tuple[str, ...], KeptPlan] = {}
    measurements: dict[tuple[str, ...], Measurement] = {}
    for pack in packs:
        for plan in pack.plans:
            key = _key(plan.row, PLAN_KEY)
            plans[key] = max(plans.get(key, plan), plan, key=lambda p: p.rank)
        for m in pack.measurements:
            key = _key(measurement_row(m), MEASUREMENT_KEY)
            measurements[key] = max(measurements.get(key, m), m, key=_measurement_rank)
    return Pack(tuple(plans.values()), tuple(measurements.values()))


def write_whole(path: Path, text: str) -> None:
    """Put a text in place of what a path has: a reader finds the old or the new one, never a part.

    Raises:
        OSError: it cannot be written there.
    """
    if not path.name:  # `.` or `/`
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _measurement_rank(m: Measurement) -> tuple[Any, ...]:
    return (m.outcome.repeats, m.measured_at, line("measurement", measurement_row(m)))


def _key(row: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in names)


def _add(found: dict[Any, Any], names: Sequence[str], row: rows.Row, value: Any) -> None:
    key = _key(row, names)
    if key in found:
        raise ValueError(f"a line before it is about the same {', '.join(names)}")
    found[key] = value


def _header_fault(lines: Sequence[str]) -> str:
    """What is wrong with the header, and with how many lines follow it."""
    try:
        header = json.loads(lines[0]) if lines else None
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        return f'it has no header of the format "{FORMAT}"'
    if header.get("version") != VERSION:
        wrote = header.get("gristmill")
        return f"the pack's version is {header.get('version')} (gristmill {wrote}), not {VERSION}"
    plans, measurements = header.get("plans"), header.get("measurements")
    if not (isinstance(plans, int) and isinstance(measurements, int)):
        return f"it announces {plans!r} plans and {measurements!r} measurements"
    if plans + measurements != len(lines) - 1:
        return (
            f"it announces {plans} plans and {measurements} measurements, and {len(lines) - 1} "
            "lines follow; the file is cut short or was edited"
        )
    return ""


def _entry(text: str) -> tuple[str, dict[str, Any]]:
    """A line's kind, and the rest of it."""
    text.encode()  # raises for bytes that were no UTF-8
    data = json.loads(text)
    kind = data.pop("kind", None) if isinstance(data, dict) else None
    if kind not in KINDS:
        raise ValueError(f"it is neither of {', '.join(KINDS)}")
    return kind, data


def _row(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """An object of a pack as the store's row."""
    if unknown := data.keys() - set(KINDS[kind]):
        raise ValueError(f"a {kind} has no {', '.join(sorted(unknown))}")
    row: dict[str, Any] = dict.fromkeys(KINDS[kind])
    for name, value in data.items():
        row[name] = json.dumps(value) if name in EMBEDDED else value
    if "config" in data:  # as the store has it: it is part of a measurement's key
        row["config"] = _canonical(data["config"])
    if isinstance(row["provenance"], dict):
        row["provenance"] = _canonical(row["provenance"])
    return row


def _opened(text: str) -> Any:
    """A provenance as the object that it is the canonical text of, or as it is."""
    try:
        data = json.loads(text)
    except ValueError:
        return text
    return data if isinstance(data, dict) and _canonical(data) == text else text


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"))


def _without_nulls(data: Any, keep: bool) -> Any:
    """An outcome without what is unknown; of a config, `None` is a value."""
    return data if keep else {name: value for name, value in data.items() if value is not None}


def current_only(pack: Pack) -> Pack:
    """The plans whose implementations are as they are here, and the measurements of such."""
    measurements = (
        m for m in pack.measurements if is_current(m.op, m.candidate.implementation, m.source_hash)
    )
    return Pack(tuple(p for p in pack.plans if p.is_current), tuple(measurements))
