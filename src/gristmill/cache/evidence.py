"""What is kept of a bucket's last run beside its rows: under what conditions it measured.

A file a bucket in `<cache_dir>/runs`, written whole by a rename: it needs no lock on any file
system, versions that know nothing of it leave it alone, and losing it loses no plan.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill.cache.packs import write_whole

FOLDER = "runs"


def keep_run(folder: Path, key: tuple[str, str, str], run: Mapping[str, Any]) -> None:
    """Keep what is known of the last run of a key (op, bucket, target), in a store's folder. Where
    that cannot be written nothing is kept."""
    path = _path(folder, key)
    with contextlib.suppress(OSError, UnicodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"key": key, **run}, indent=1) + "\n")


def kept_run(folder: Path, key: tuple[str, str, str]) -> dict[str, Any] | None:
    """What `keep_run` kept, or `None`."""
    try:
        run = json.loads(_path(folder, key).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(run, dict) or run.pop("key", None) != list(key):
        return None
    return run


def forget_runs(folder: Path) -> None:
    """Remove all that `keep_run` kept."""
    for path in (folder / FOLDER).glob("*.json"):
        with contextlib.suppress(OSError):
            path.unlink()


def _path(folder: Path, key: tuple[str, str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return folder / FOLDER / f"{digest[:32]}.json"
