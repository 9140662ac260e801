"""Where a store keeps its rows: one SQLite file, or on network file systems a folder of shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gristmill import cache, settings
from gristmill.cache.database import Database
from gristmill.cache.faults import Notify
from gristmill.cache.rows import SHARDS as FOLDER_NAME
from gristmill.cache.rows import Choose, Chosen, Row, Values

NETWORK = (  # FUSE may be local, but seldom has shared memory maps
    "nfs", "cifs", "smb", "9p", "lustre", "gpfs", "beegfs", "ceph", "afs", "fuse.", "virtiofs",
    "glusterfs", "orangefs", "pvfs", "panfs", "wekafs", "vboxsf", "prl_fs", "ncpfs", "coda",
)  # fmt: skip


class Backend(Protocol):
    """What a store asks of its place on disk. Every method does what it says or raises
    `StoreFault`."""

    path: Path
    foreign: str

    def exists(self) -> bool: ...

    def size_bytes(self) -> int: ...

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Row]: ...

    def append(
        self, measurements: Sequence[Values], plans: Sequence[Values], tokens: Sequence[str] = ()
    ) -> None: ...

    def extend(self, choose: Choose) -> None: ...

    def remove(self, chosen: Chosen) -> int: ...

    def touch(self) -> None: ...

    def acquire(self, key: str, token: str) -> bool: ...

    def release(self, key: str, token: str) -> None: ...


def open_backend(folder: Path, notify: Notify) -> Backend:
    """The place in a folder, as the settings say; nothing is created before the first write."""
    mode = settings.current().store
    if mode == "shards" or (mode == "auto" and _is_shared(folder)):
        return cache.Shards(folder, notify)
    return Database(folder, notify)


def _is_shared(folder: Path) -> bool:
    """Whether other machines may use the folder: its file system says so; or it has shards, made by
    machines for which it is a network's while it is this one's own disk."""
    return file_system(folder).startswith(NETWORK) or os.access(folder / FOLDER_NAME, os.F_OK)


def file_system(folder: Path) -> str:
    """The type of the file system that holds a folder, as Linux names it; empty elsewhere."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        resolved = str(folder.resolve())
    except (OSError, RuntimeError):  # links that go round
        return ""
    best, kind = -1, ""
    for _, point, name, *_ in mounts:
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), name
    return kind
