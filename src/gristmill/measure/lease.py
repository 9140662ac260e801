"""A lease on a device, across processes: one tuner measures at a time."""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever holds a device by its name alone needs no torch (an actor)
    import torch


def device_identity(device: torch.device) -> str:
    """The device's name among all processes of the machine, whatever `CUDA_VISIBLE_DEVICES` is."""
    if device.type != "cuda":
        return device.type
    import torch

    return str(getattr(torch.cuda.get_device_properties(device), "uuid", device))


def device_lease(
    device: torch.device, folder: Path, timeout_s: float
) -> contextlib.AbstractContextManager[bool]:
    """Hold a device among the processes that share `folder`; yields whether it was got in time."""
    return identity_lease(device_identity(device), folder, timeout_s)


@contextlib.contextmanager
def identity_lease(identity: str, folder: Path, timeout_s: float) -> Iterator[bool]:
    """Hold the device of this `device_identity`, as `device_lease` does.

    A lock of the kernel's on a file there: it goes with its holder, however that ends. Where the
    folder cannot be written nobody can be seen, and the lease is granted.
    """
    name = re.sub(r"[^a-zA-Z0-9-]+", "-", identity)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (folder / f"{name}.lock").open("a")
    except OSError:
        yield True
        return
    with file:
        yield _locked(file.fileno(), timeout_s)


def _locked(descriptor: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)
        else:
            return True
