"""Waiting for what another thread or process does, on a machine that may be loaded."""

from __future__ import annotations

import time

PATIENCE_S = 100.0


def eventually(what, message=""):
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, message
        time.sleep(0.01)
