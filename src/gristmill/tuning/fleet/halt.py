"""The end of many runs at once, asked for from another thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

ASKED = 1  # after the trial in flight
DROPPED = 2  # without it: its worker is killed, and another checks what leads
KILLED = 3  # at once


class Halt:
    """Ends runs: first after the trial that each has in flight, then without it, then at once.

    Ctrl-C reaches the main thread alone; each run of another thread looks here and raises the
    `KeyboardInterrupt` itself, and ends as a run of the main thread does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._level = 0
        self._told: list[Callable[[int], None]] = []

    @property
    def asked(self) -> bool:
        """Whether runs are to end."""
        return self._level >= ASKED

    def check(self) -> None:
        """Raise `KeyboardInterrupt` where the end was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def telling(self, tell: Callable[[int], None]) -> Iterator[None]:
        """Have this called with how soon to end, from whatever thread asks for it in the block; at
        once where that was before."""
        with self._lock:
            self._told.append(tell)
            level = self._level
        try:
            if level:
                tell(level)
            yield
        finally:
            with self._lock:
                self._told.remove(tell)

    def ask(self, level: int) -> None:
        """End: `ASKED`, `DROPPED` or `KILLED`."""
        with self._lock:
            self._level = max(self._level, level)
            told = list(self._told)
        for tell in told:
            tell(level)
