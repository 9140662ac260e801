"""When an idle tuner may work: a flag that the user's process raises while it is at work itself,
and the gate that the tuning process waits at.

The flag is a page of memory of the user's process, which its thread (`background`) writes and the
tuning process reads.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import weakref
from collections.abc import Callable
from typing import Any

from gristmill import settings

LOOK_S = 0.005  # between two looks at the flag while waiting
GIVE_WAY_S = 30.0  # of waiting, after which a run ends and others may have the device
PAGE = struct.Struct("<qq")  # busy, and how often that began
EVENTS = 10_000  # kept of a run


class GaveWayError(Exception):
    """The user's process was at work for long: what was measured is kept, the rest is for later."""


class Flag:
    """The user's side: says whether its process is at work."""

    def __init__(self) -> None:
        self._file = os.memfd_create("gristmill-idle")
        weakref.finalize(self, os.close, self._file)
        os.truncate(self._file, PAGE.size)
        self._page = mmap.mmap(self._file, PAGE.size)
        self._busy, self._turns = False, 0
        self.set(busy=True)

    @property
    def path(self) -> str:
        """What the tuning process opens: nothing is left of it when this process ends."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def set(self, *, busy: bool) -> None:
        """Say so."""
        if busy != self._busy:
            self._busy = busy
            self._turns += busy
            PAGE.pack_into(self._page, 0, busy, self._turns)


class Gate:
    """The tuner's side: waits until the user's process is idle, and keeps a log.

    Attributes:
        waited_s: for how long it has waited.
        log: (time, event), times of the machine's monotonic clock, which all of its processes
            share: `wait` and `go` around waiting, `trial` and `kept` or `disturbed` around a trial,
            `stop` and `cont` where the worker was stopped.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        with open(path, "rb") as file:  # noqa: PTH123 - of a file that has no name any more
            self._page = mmap.mmap(file.fileno(), PAGE.size, access=mmap.ACCESS_READ)
        self._clock = clock
        self.waited_s = 0.0
        self.log: list[tuple[float, str]] = []

    @property
    def busy(self) -> bool:
        """Whether the user's process is at work."""
        return bool(PAGE.unpack_from(self._page)[0])

    @property
    def turns(self) -> int:
        """How often it has begun to be."""
        return PAGE.unpack_from(self._page)[1]

    def note(self, event: str) -> None:
        """Write an event down."""
        if len(self.log) < EVENTS:
            self.log.append((self._clock(), event))

    def wait(self) -> float:
        """Return once the user's process is idle, with the seconds that it took.

        Raises:
            GaveWayError: it took too long.
        """
        if not self.busy:
            return 0.0
        self.note("wait")
        start = self._clock()
        try:
            while self.busy:
                if self._clock() - start > GIVE_WAY_S:
                    raise GaveWayError(f"the process was at work for {GIVE_WAY_S:.0f} s")
                time.sleep(LOOK_S)
        finally:
            waited_s = self._clock() - start
            self.waited_s += waited_s
        self.note("go")
        return waited_s


def jobs_settings() -> dict[str, Any]:
    """The settings in force that a tuning process needs, as JSON."""
    now = settings.current()
    names = ("cache_dir", "lock_dir", "pack_dir", "store", "l2", "candidate_timeout_s", "growth_gb")
    return {
        name: str(value) if name.endswith("_dir") else value
        for name in names
        if (value := getattr(now, name)) is not None
    }
