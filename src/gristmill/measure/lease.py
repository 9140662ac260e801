"""A lease on a device, across processes: one tuner measures at a time."""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def device_lease(folder: Path, device: str, timeout_s: float) -> Iterator[bool]:
    """Hold the device named `device` among processes that share `folder`; yields whether it was got
    in time.

    A lock of the kernel's: it goes with its holder, however that ends. Where the folder cannot be
    written there is nothing to share, and the lease is granted.
    """
    name = re.sub(r"\W+", "-", device)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"{name}.lock").open("a")
    except OSError:
        yield True
        return
    with file:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.1)
        yield True
