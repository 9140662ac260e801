"""A store in a folder of shards, for file systems that several machines mount.

SQLite's log needs memory that its users share, and a network's locks are often none. So nothing
here is ever changed in place, and nothing needs a lock: a writer writes a file of its own and gives
it its name when it is whole; readers join whatever files there are; one process at a time merges
many into one. A merged file says which it replaces, and those stay for a while: a machine whose
listing of the folder is old still finds all that it names.

    <cache_dir>/shards-v1/<random>.jsonl          rows (`shard`)
    <cache_dir>/shards-v1/merged-<random>.jsonl   rows of many such files
    <cache_dir>/shards-v1/.draft-<random>         being written; never read
    <cache_dir>/shards-v1/lease-<key>.<token>     who works on a key

Times are compared within the file system's own clock: of two files' changes. No machine's is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gristmill.cache import lease, shard
from gristmill.cache.clock import STEP_S
from gristmill.cache.database import FILE_NAME, Database
from gristmill.cache.faults import Notify, StoreFault, fault_of
from gristmill.cache.lease import LEASE_S
from gristmill.cache.rows import PLAN_COLUMNS, SHARDS, Choose, Chosen, Row, Values
from gristmill.cache.union import COLUMNS, PLAN_KEY, Union

FOLDER_NAME = SHARDS
MANY = 64  # shards that are worth a merge
GRACE_S = 120.0  # for which a listing may be old: twice NFS's default
DRAFT_S = 3600.0  # after which the writer of a draft is dead, or will find it gone and try again
MERGE_WAIT_S = 30.0
TRIES = 4  # at a lease that two ask for at the same moment
STAMPS = {"measurements": "measured_at", "plans": "created_at"}
FROM_DATABASE = "database-"


class Shards:
    """One store's folder; every method either does what it says or raises `StoreFault`."""

    def __init__(self, folder: Path, notify: Notify) -> None:
        self.path = folder / FOLDER_NAME
        self.foreign = ""
        self._notify = notify
        self._union = Union(self.path, notify)
        self._old = Database(folder, notify)
        self._leases: dict[str, Path] = {}  # held by this process, by token
        self._migrated = False
        self._written = 0  # shards by this process, since a merge was thought of

    def exists(self) -> bool:
        """Whether there is anything to read."""
        return os.access(self.path, os.F_OK) or self._old.exists()

    def size_bytes(self) -> int:
        """Bytes on disk, of what is to be deleted too."""
        total = 0
        with contextlib.suppress(OSError):
            for path in self.path.iterdir():
                with contextlib.suppress(OSError):
                    total += path.stat().st_size
        return total

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """What a query gives; of a store that does not exist yet, nothing."""
        with _faults():
            self._migrate()
            return self._union.rows(query, values)

    def append(
        self, measurements: Sequence[Values], plans: Sequence[Values], tokens: Sequence[str] = ()
    ) -> None:
        """Keep rows, all or none of them; a sign of life for leases with them."""
        name = uuid.uuid4().hex
        tables = (("measurements", measurements), ("plans", plans))
        named = [(t, dict(zip(COLUMNS[t], v, strict=True))) for t, rows in tables for v in rows]
        rows = [{"table": t, "id": f"{name}:{i}", **row} for i, (t, row) in enumerate(named)]
        with _faults():
            self._migrate()
            self.path.mkdir(parents=True, exist_ok=True)
            shard.publish(self.path, name + shard.SUFFIX, rows, ())
        self._written += 1
        with contextlib.suppress(OSError, StoreFault):  # the rows are safe
            for token in tokens:
                if token in self._leases:
                    os.utime(self._leases[token])
            if self._written >= MANY // 2:
                self._written = 0
                if len(shard.names(self.path)) > MANY:
                    self.merge()

    def extend(self, choose: Choose) -> None:
        """Keep the rows that `choose` gives when it has read what there is. Where two do so at
        once, both see what was before, and equal rows are kept twice: the latest counts."""
        measurements, plans = choose(self.rows)
        stamp = PLAN_COLUMNS.index("created_at")
        counts = {
            tuple(row[column] for column in PLAN_KEY): row["created_at"]
            for row in self.rows("SELECT * FROM plans")
        }
        later: list[Values] = []  # a plan that takes another's place has to be the later one
        for values in plans:
            key = tuple(values[PLAN_COLUMNS.index(column)] for column in PLAN_KEY)
            made = max(values[stamp], counts.get(key, values[stamp] - STEP_S) + STEP_S)
            later.append((*values[:stamp], made, *values[stamp + 1 :]))
        self.append(measurements, later)

    def remove(self, chosen: Chosen) -> int:
        """Remove the rows that are chosen, and give their space back; how many there were."""
        if not self.exists():
            return 0
        with _faults():
            self._migrate()
            return self._merge_alone(chosen, MERGE_WAIT_S)

    def merge(self) -> None:
        """Make one shard of many, unless another process is doing that."""
        with _faults():
            self._merge_alone(None, 0.0)

    def touch(self) -> None:
        """Write a file: fails where nothing can be written."""
        with _faults():
            self.path.mkdir(parents=True, exist_ok=True)
            shard.write_draft(self.path, "").unlink(missing_ok=True)

    def acquire(self, key: str, token: str) -> bool:
        """Take the lease of `key` unless a live process holds it.

        Whoever asks says so first, in a file, and then looks whether anybody else did: of two, at
        least one sees the other, and withdraws.
        """
        mark = f"lease-{hashlib.sha256(key.encode()).hexdigest()[:24]}."
        with _faults():
            self.path.mkdir(parents=True, exist_ok=True)
            for attempt in range(TRIES):
                draft = shard.write_draft(self.path, json.dumps(lease.holder()))
                mine = self.path / (mark + token)
                try:
                    now = draft.stat().st_mtime
                    dead = {p for p in self.path.glob(f"{mark}*") if _is_over(p, now)}
                    if dead != set(self.path.glob(f"{mark}*")):
                        return False
                    draft.rename(mine)
                finally:
                    draft.unlink(missing_ok=True)
                if set(self.path.glob(f"{mark}*")) <= dead | {mine}:
                    for path in dead:
                        path.unlink(missing_ok=True)
                    self._leases[token] = mine
                    return True
                mine.unlink(missing_ok=True)
                time.sleep(random.uniform(0.0, 0.02 * 2**attempt))
            return False

    def release(self, key: str, token: str) -> None:
        """Give the lease back, if it was not taken over."""
        del key  # a token is of one lease
        if token in self._leases:
            with _faults():
                self._leases[token].unlink(missing_ok=True)
            del self._leases[token]

    def _merge_alone(self, chosen: Chosen | None, wait_s: float) -> int:
        token, deadline = uuid.uuid4().hex, time.monotonic() + wait_s
        while not self.acquire("merge", token):
            if time.monotonic() >= deadline:
                if chosen is None:
                    return 0
                raise StoreFault("locked", "another process is merging its shards")
            time.sleep(0.05)
        try:
            return self._merge(chosen)
        finally:
            self.release("merge", token)

    def _merge(self, chosen: Chosen | None) -> int:
        """Write a shard with what the others hold. Only then, and after a while, may they go; what
        is written meanwhile is in none of them, and stays."""
        files: dict[str, shard.Shard] = {}
        listed = shard.names(self.path)
        for name in listed:
            with contextlib.suppress(FileNotFoundError):
                files[name] = shard.read(self.path / name)
        replaced = set().union(*(one.replaces for one in files.values()))
        live = {n: one for n, one in files.items() if n not in replaced and not one.damage}
        rows = _distinct(row for name in sorted(live) for row in live[name].rows)
        kept = [row for row in rows if chosen is None or not _is_chosen(row, chosen)]
        merged = f"{shard.MERGED}{uuid.uuid4().hex}{shard.SUFFIX}"
        if len(live) > 1 or len(kept) < len(rows):
            gone = {n for n in replaced if n in listed or n.startswith(FROM_DATABASE)}
            shard.publish(self.path, merged, kept, sorted(gone | live.keys()))
        self._sweep(0.0 if chosen is not None else GRACE_S)
        return len(rows) - len(kept)

    def _sweep(self, grace_s: float) -> None:
        """Delete what was merged long enough ago, and drafts of writers that were killed."""
        probe = shard.write_draft(self.path, "")
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        for path in self.path.glob(f"{shard.DRAFT}*"):
            if _age_s(path, now) > DRAFT_S:
                path.unlink(missing_ok=True)
        for path in self.path.glob(f"{shard.MERGED}*{shard.SUFFIX}"):
            if _age_s(path, now) >= grace_s:
                with contextlib.suppress(FileNotFoundError):
                    for name in shard.read(path).replaces:
                        (self.path / name).unlink(missing_ok=True)

    def _migrate(self) -> None:
        """Take over the rows of an SQLite file that another version, or a machine for which the
        folder is its own disk, keeps here. It is left as it is."""
        if self._migrated:
            return
        with contextlib.suppress(FileNotFoundError):
            found = self._old.path.stat()
            name = f"{FROM_DATABASE}{found.st_size}-{found.st_mtime_ns}{shard.SUFFIX}"
            if name not in self._union.refresh():
                self._take_over(name)
        self._migrated = True

    def _take_over(self, name: str) -> None:
        try:
            rows = [_taken(t, row) for t in COLUMNS for row in self._old.rows(f"SELECT * FROM {t}")]
        except StoreFault as fault:
            self._notify(fault.kind, f"{FILE_NAME} beside it cannot be read: {fault.message}")
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            shard.publish(self.path, name, rows, ())
        except OSError:  # nothing can be written here: this process has the rows in memory
            self._union.add(rows, name)


def _is_over(path: Path, now: float) -> bool:
    """Whether the holder of a lease is gone, or gave no sign of life for long."""
    try:
        host, pid, started = json.loads(path.read_text())
        alive = lease.lives(host, pid, started)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, TypeError):
        alive = None
    return not alive if alive is not None else _age_s(path, now) > LEASE_S


def _age_s(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except OSError:
        return 0.0


def _distinct(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row once, and of the plans for one key the one that counts."""
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        key = row.get("id")
        if key is None:
            continue  # nobody reads it
        if row.get("table") == "plans":
            key = tuple(row.get(column) for column in PLAN_KEY)
            other = found.get(key)
            if other is not None and _rank(other) > _rank(row):
                continue
        found[key] = row
    return list(found.values())


def _rank(row: Mapping[str, Any]) -> tuple[float, str]:
    stamp = row.get("created_at")
    return (stamp if isinstance(stamp, (int, float)) else 0.0, str(row.get("config")))


def _is_chosen(row: Mapping[str, Any], chosen: Chosen) -> bool:
    stamp = row.get(STAMPS.get(str(row.get("table")), ""))
    seconds = stamp if isinstance(stamp, (int, float)) else 0.0
    return chosen(str(row.get("op")), str(row.get("source_hash")), seconds)


def _taken(table: str, row: Row) -> dict[str, Any]:
    values = {column: row[column] for column in COLUMNS[table]}
    text = json.dumps([table, values], sort_keys=True)
    return {"table": table, "id": hashlib.sha256(text.encode()).hexdigest()[:32], **values}


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fault_of(error) from error
