"""How much memory a process of ours has come to hold since it began its work, and when that is too
much: what leaks in a worker or a compiler must not take the machine down."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill import settings

GB = 1e9
HOST, DEVICE = "host", "device"


def resident_bytes(pid: int | None = None) -> int:
    """The memory that a process holds (default: this one), as far as the system says: 0 where it
    does not, or there is no such process."""
    try:
        pages = Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Growth:
    """What this process has grown by since its first answer.

    Of device memory it counts what tensors hold: torch's cache is given back, and what the driver
    keeps for a kernel is small.
    """

    def __init__(self) -> None:
        self._before: dict[str, int] = {}
        self._work: Any = None

    def since(self, work: Any = None) -> dict[str, int]:
        """Bytes of host and device memory more than at the first time. Device memory belongs to the
        work at hand: other work, and it is counted anew."""
        import torch  # whoever only judges growth needs none (an actor)

        now = {HOST: resident_bytes()}
        if torch.cuda.is_initialized():
            now[DEVICE] = torch.cuda.memory_allocated()
        if work is not self._work:
            self._work = work
            self._before.pop(DEVICE, None)
        return {name: held - self._before.setdefault(name, held) for name, held in now.items()}


def too_large(grown: Mapping[str, int], limit_bytes: float | None = None) -> str:
    """Why a process that has grown by this is to be replaced, or an empty string. The limit is that
    of the settings, where whoever asks for the work has not sent one along."""
    limit = settings.current().growth_gb if limit_bytes is None else limit_bytes / GB
    for name, held in grown.items():
        if held > limit * GB:
            return f"it has grown by {held / GB:.1f} GB of {name} memory ({limit:g} are allowed)"
    return ""
