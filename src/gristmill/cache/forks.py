"""What must not happen while the process forks: a child would inherit an open file of SQLite, or a
lock of a thread that it does not have."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol


class Lockable(Protocol):
    """Something whose work is done under its locks, which are taken in this order."""

    @property
    def locks(self) -> Sequence[Any]: ...


REGISTRY = threading.Lock()  # of who is alive, and of the stores by folder
_living: weakref.WeakSet[Lockable] = weakref.WeakSet()
_held: list[Lockable] = []


def wait_for(worker: Lockable) -> None:
    """From now on no fork happens while `worker` works."""
    with REGISTRY:
        _living.add(worker)


def _before_fork() -> None:
    REGISTRY.acquire()
    _held.extend(_living)
    for worker in _held:
        for lock in worker.locks:
            lock.acquire()


def _after_fork() -> None:
    for worker in _held:
        for lock in worker.locks:
            lock.release()
    _held.clear()
    REGISTRY.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
