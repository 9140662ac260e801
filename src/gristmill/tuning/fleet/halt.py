"""The end of many runs at once, asked for from another thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class Halt:
    """Ends runs: first after the trial that each has in flight, then at once.

    Ctrl-C reaches the main thread alone; each run of another thread looks here and raises the
    `KeyboardInterrupt` itself, and ends as a run of the main thread does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked = self.killed = False
        self._on_ask: list[Callable[[], None]] = []
        self._on_kill: list[Callable[[], None]] = []

    def check(self) -> None:
        """Raise `KeyboardInterrupt` where the end was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def telling(self, on_ask: Callable[[], None], on_kill: Callable[[], None]) -> Iterator[None]:
        """Have these called, from whatever thread, when the end is asked for in the block (or was
        before it)."""
        with self._lock:
            self._on_ask.append(on_ask)
            self._on_kill.append(on_kill)
            asked, killed = self.asked, self.killed
        try:
            if asked:
                on_ask()
            if killed:
                on_kill()
            yield
        finally:
            with self._lock:
                self._on_ask.remove(on_ask)
                self._on_kill.remove(on_kill)

    def ask(self) -> None:
        """End after the trials in flight."""
        with self._lock:
            self.asked = True
            told = list(self._on_ask)
        for tell in told:
            tell()

    def kill(self) -> None:
        """End now: workers are killed with what they try."""
        self.ask()
        with self._lock:
            self.killed = True
            told = list(self._on_kill)
        for tell in told:
            tell()
