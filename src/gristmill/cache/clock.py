"""The time that rows are stamped with: later rows have later stamps, whatever the clocks do."""

from __future__ import annotations

import math
import threading
import time

STEP_S = 1e-4  # between stamps of a clock that stands still; a double tells them apart until 2800


class Clock:
    """The time of day, but never before a stamp that was given or seen.

    The latest row of a candidate is the one that counts, and it is found by its stamp. A clock that
    is set back, or another machine's that is ahead, would let an old row win for ever.
    """

    def __init__(self) -> None:
        self._latest = -math.inf
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds since 1970, later than every stamp given or seen before."""
        with self._lock:
            self._latest = max(time.time(), self._latest + STEP_S)
            return self._latest

    def see(self, stamp: float) -> None:
        """Take note of a stamp on a row."""
        if math.isfinite(stamp):
            with self._lock:
                self._latest = max(self._latest, stamp)
