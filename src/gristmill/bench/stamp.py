"""What a report has to say of how it came about: versions, device, commit, date and command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from gristmill import __version__
from gristmill.bench.tree import ROOT, of_folder
from gristmill.core.provenance import provenance
from gristmill.core.target import device_target


@dataclass(frozen=True, slots=True)
class Stamp:
    """How a report came about.

    Attributes:
        device, target: its label (`, warm L2` where it is) and the store's key of it.
        versions: of gristmill, torch, Triton, CUDA and the driver.
        commit: the stated commit, or the checkout's; `None` outside one. dirty: whether the
            checkout had local changes; of a stated commit, whether the sources here are not its
            own, or `None` where nothing says what those are.
        date: UTC, ISO 8601. command: the command line.
        tree: the digest of gristmill's sources (`bench/tree.py`); empty in reports older than it.
    """

    device: str
    target: str
    versions: dict[str, str]
    commit: str | None
    dirty: bool | None
    date: str
    command: str
    tree: str = ""

    @classmethod
    def of(cls, device: torch.device, commit: str | None = None) -> Stamp:
        """The stamp of a report made now on `device`.

        Where the tree here is a copy that does not know its commit, `commit` says it: an id, with
        `:` and the digest of its sources (`python -m gristmill.bench.tree HEAD` there prints both).
        Stated, it goes before what git knows here: the GPU machine's copy has an older checkout's.
        """
        target = device_target(device)
        stated, _, clean = (commit or "").partition(":")
        found = stated or _git("rev-parse", "HEAD")
        status = None if stated else _git("status", "--porcelain")
        tree = of_folder()
        dirty = bool(status) if status is not None else tree != clean if clean else None
        return cls(
            device=target.label,
            target=target.key,
            versions={"gristmill": __version__, **json.loads(provenance())},
            commit=found or None,
            dirty=dirty,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=_command(),
            tree=tree,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _command() -> str:
    program = Path(sys.argv[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return f"{name} {shlex.join(sys.argv[1:])}".strip()


def _git(*arguments: str) -> str | None:
    """What git says of the checkout that this file is in; `None` where it is in none."""
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
