"""A shard: a file of rows that is written once and never changed.

    {"gristmill": 1, "rows": 2, "replaces": []}
    {"table": "measurements", "id": "5c0f...:0", "op": "matmul", ...}
    {"table": "plans", "id": "5c0f...:1", "op": "matmul", ...}

JSON lines. A row keeps its `id` wherever it is copied to, so that rows are never counted twice.
`replaces`: shards whose rows are here now, as far as they are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.cache.rows import SCHEMA_VERSION

DRAFT = ".draft-"
SUFFIX = ".jsonl"
MERGED = "merged-"


@dataclass(frozen=True, slots=True)
class Shard:
    """What a shard's file says.

    Attributes:
        rows: one object each, with `table` and `id` beside the columns.
        replaces: names of shards that are not to be read any more.
        damage: what is wrong with the file, if anything is; `rows` are those that can be read.
    """

    rows: tuple[dict[str, Any], ...]
    replaces: frozenset[str] = frozenset()
    damage: str = ""


def publish(
    folder: Path, name: str, rows: Sequence[dict[str, Any]], replaces: Sequence[str]
) -> None:
    """Write a shard under its name, all of it or nothing.

    Raises:
        OSError: it could not be written; nothing stays.
    """
    header = {"gristmill": SCHEMA_VERSION, "rows": len(rows), "replaces": sorted(replaces)}
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in (header, *rows))
    draft = write_draft(folder, text)
    try:
        try:
            draft.rename(folder / name)
        except FileNotFoundError:  # NFS: the answer to a rename that was done got lost
            if not (folder / name).exists():
                raise
        _sync_folder(folder)
    finally:
        draft.unlink(missing_ok=True)


def write_draft(folder: Path, text: str) -> Path:
    """A file that no reader looks at, on the disk when this returns."""
    draft = folder / f"{DRAFT}{uuid.uuid4().hex}"
    try:
        with draft.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    return draft


def read(path: Path) -> Shard:
    """What is in a shard's file.

    Raises:
        OSError: it cannot be read.
    """
    lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    header = _object(lines[0]) if lines else None
    if header is None or header.get("gristmill") != SCHEMA_VERSION:
        return Shard((), damage="it has no header of this version")
    found = [_object(line) for line in lines[1:]]
    rows = tuple(row for row in found if row is not None)
    lost = max(int(header.get("rows", 0)), len(found)) - len(rows)
    replaces = frozenset(str(name) for name in header.get("replaces", ()))
    return Shard(rows, replaces, f"{lost} of its rows cannot be read" if lost else "")


def names(folder: Path) -> set[str]:
    """The shards in a folder, as its listing has them now."""
    try:
        with os.scandir(folder) as entries:
            return {e.name for e in entries if e.name.endswith(SUFFIX) and e.name[0] != "."}
    except FileNotFoundError:
        return set()


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _sync_folder(folder: Path) -> None:
    """The name is to outlive a power cut too; not every file system can be asked."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
