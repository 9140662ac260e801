"""Measurements and plans as rows of the store, and back; a row that does not decode raises
`ValueError`."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from gristmill.core.config import Config
from gristmill.core.plan import Candidate, Measurement, Objective, Origin, Outcome, Plan, Status

SCHEMA_VERSION = 1
SHARDS = f"shards-v{SCHEMA_VERSION}"  # the folder that stands for the file on a network's disks
APPLICATION_ID = 0x67726973  # "gris": tells our files from any other SQLite file

MEASUREMENT_COLUMNS = (
    "op", "implementation", "config", "source_hash", "bucket", "target",
    "problem", "outcome", "provenance", "measured_at",
)  # fmt: skip
PLAN_COLUMNS = (
    "op", "bucket", "target", "objective", "family", "axes",
    "implementation", "config", "source_hash", "fallback_implementation", "fallback_config",
    "evidence", "origin", "reason", "provenance", "created_at",
)  # fmt: skip

SCHEMA = f"""
BEGIN;
CREATE TABLE measurements (
    id INTEGER PRIMARY KEY,
    op TEXT NOT NULL, implementation TEXT NOT NULL, config TEXT NOT NULL, source_hash TEXT NOT NULL,
    bucket TEXT NOT NULL, target TEXT NOT NULL,
    problem TEXT NOT NULL, outcome TEXT NOT NULL,
    provenance TEXT NOT NULL, measured_at REAL NOT NULL
);
CREATE INDEX measurements_of_bucket ON measurements (op, bucket, target);
CREATE TABLE plans (
    op TEXT NOT NULL, bucket TEXT NOT NULL, target TEXT NOT NULL, objective TEXT NOT NULL,
    family TEXT NOT NULL, axes TEXT NOT NULL,
    implementation TEXT NOT NULL, config TEXT NOT NULL, source_hash TEXT NOT NULL,
    fallback_implementation TEXT, fallback_config TEXT, evidence TEXT,
    origin TEXT NOT NULL, reason TEXT NOT NULL, provenance TEXT NOT NULL, created_at REAL NOT NULL,
    PRIMARY KEY (op, bucket, target, objective, provenance)
);
CREATE INDEX plans_of_family ON plans (op, family, target, objective);
CREATE TABLE leases (
    key TEXT PRIMARY KEY, token TEXT NOT NULL,
    host TEXT NOT NULL, pid INTEGER NOT NULL, started TEXT NOT NULL, expires_at REAL NOT NULL
);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

Row = Mapping[str, Any]
Values = tuple[Any, ...]  # of a row, in the order of its table's columns
Read = Callable[[str], list[Row]]  # what a query gives
# New measurements and plans, given what there is
Choose = Callable[[Read], tuple[Sequence[Values], Sequence[Values]]]
Chosen = Callable[[str, str, float], bool]  # a row's op, source hash and stamp: is it to go?


def insert(table: str, columns: Sequence[str]) -> str:
    """The statement that writes one row, in place of the one with its primary key."""
    marks = ", ".join("?" * len(columns))
    return f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({marks})"


def touch(connection: sqlite3.Connection) -> None:
    """Write what is there already: fails where nothing can be written."""
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def measurement_row(m: Measurement) -> tuple[Any, ...]:
    """The values of `MEASUREMENT_COLUMNS`."""
    return (
        *map(
            _text,
            (
                m.op,
                m.candidate.implementation,
                m.candidate.config.key,
                m.source_hash,
                m.bucket,
                m.target,
            ),
        ),
        *map(_text, (m.problem, json.dumps(m.outcome.to_json()), m.provenance)),
        float(m.measured_at),
    )


def plan_row(
    plan: Plan, family: str, axes: Mapping[str, int], created_at: float
) -> tuple[Any, ...]:
    """The values of `PLAN_COLUMNS`."""
    fallback, evidence = plan.fallback, plan.evidence
    return (
        *map(
            _text,
            (plan.op, plan.bucket, plan.target, plan.objective, family, json.dumps(dict(axes))),
        ),
        *map(_text, (plan.candidate.implementation, plan.candidate.config.key, plan.source_hash)),
        None if fallback is None else _text(fallback.implementation),
        None if fallback is None else fallback.config.key,
        None if evidence is None else json.dumps(evidence.to_json()),
        *map(_text, (plan.origin, plan.reason, plan.provenance)),
        float(created_at),
    )


def stamp(value: Any) -> float:
    """A time in seconds since 1970.

    Raises:
        ValueError: it is none: SQLite keeps NaN as NULL.
    """
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"the time {value!r}")
    return seconds


def measurement(row: Row) -> Measurement:
    """The measurement in a row.

    Raises:
        ValueError: a value is damaged or of a version that this one does not know.
    """
    return Measurement(
        op=_str(row["op"]),
        candidate=_candidate(row["implementation"], row["config"]),
        source_hash=_str(row["source_hash"]),
        bucket=_str(row["bucket"]),
        target=_str(row["target"]),
        problem=_str(row["problem"]),
        outcome=_outcome(row["outcome"]),
        provenance=_str(row["provenance"]),
        measured_at=stamp(row["measured_at"]),
    )


def plan(row: Row, provenance: str) -> Plan:
    """The plan in a row; to be revalidated where `provenance` is not its own.

    Raises:
        ValueError: a value is damaged or of a version that this one does not know.
    """
    fallback = row["fallback_implementation"]
    return Plan(
        op=_str(row["op"]),
        candidate=_candidate(row["implementation"], row["config"]),
        bucket=_str(row["bucket"]),
        target=_str(row["target"]),
        objective=_one_of(row["objective"], Objective),
        origin=_one_of(row["origin"], Origin),
        source_hash=_str(row["source_hash"]),
        fallback=None if fallback is None else _candidate(fallback, row["fallback_config"]),
        evidence=None if row["evidence"] is None else _outcome(row["evidence"]),
        reason=_str(row["reason"]),
        provenance=_str(row["provenance"]),
        revalidate=row["provenance"] != provenance,
    )


def axes(row: Row) -> dict[str, int]:
    """The bucketed sizes of a plan's row.

    Raises:
        ValueError: they are damaged.
    """
    sizes = _object(row["axes"])
    if not all(type(size) is int for size in sizes.values()):
        raise ValueError(f"axes {sizes!r}")
    return sizes


def _candidate(implementation: Any, config: Any) -> Candidate:
    knobs = _object(config)
    if not all(
        value is None or isinstance(value, (bool, int, float, str)) for value in knobs.values()
    ):
        raise ValueError(f"config {config!r}")
    return Candidate(_str(implementation), Config(knobs))


def _outcome(text: Any) -> Outcome:
    data = _object(text)
    _one_of(data.get("status"), Status)
    for name, value in data.items():
        expected: Any = str if name in ("status", "reason") else (int, float, type(None))
        if not isinstance(value, expected) or isinstance(value, bool):
            raise ValueError(f"outcome {text!r}: {name}")  # noqa: TRY004 - one kind of error for every damaged row
    try:
        return Outcome.from_json(data)
    except TypeError as error:  # a field that this version lacks
        raise ValueError(f"outcome {text!r}: {error}") from error


def _object(text: Any) -> dict[str, Any]:
    value = json.loads(_str(text))
    if not isinstance(value, dict):
        raise ValueError(f"not an object: {text!r}")  # noqa: TRY004 - as above
    return value


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not a text: {value!r}")  # noqa: TRY004 - as above
    return value


def _one_of(value: Any, names: Any) -> Any:
    if value not in get_args(names):
        raise ValueError(f"unknown value {value!r}")
    return value


def _text(value: str) -> str:
    """`value` without what UTF-8 cannot hold: compilers' messages come with stray surrogates."""
    return value.encode("utf-8", "backslashreplace").decode()
