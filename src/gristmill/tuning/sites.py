"""Where candidates are measured: a device of this process, or whatever else stands for one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch

from gristmill import settings
from gristmill.core.problem import Problem
from gristmill.core.target import Target, device_target
from gristmill.measure.lease import device_lease
from gristmill.tuning.compiler import CompilePool
from gristmill.tuning.measurer import Measurer
from gristmill.tuning.subject import Compiles, Measures


class Site(Protocol):
    """A device, here or on another machine.

    Attributes:
        name: what messages call it. target: its silicon.
        versions: the provenance of what is measured there; empty: this process's own.
        jobs: how many candidates of a run are compiled for it at once.
    """

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> Target: ...

    @property
    def versions(self) -> str: ...

    @property
    def jobs(self) -> int: ...

    def measurer(self, problem: Problem, seed: int) -> Measures:
        """What measures candidates of a problem there."""
        ...

    def pool(self, problem: Problem) -> Compiles:
        """What compiles them where the measurer finds them."""
        ...

    def lease(self, wait_s: float) -> AbstractContextManager[bool]:
        """Whether nobody else measures there until the block ends; waits its turn."""
        ...


class LocalSite:
    """A device of this machine."""

    versions = ""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.target = device_target(device)
        self.name = str(device)

    @property
    def jobs(self) -> int:
        """As many as the settings say."""
        return settings.current().compile_jobs

    def measurer(self, problem: Problem, seed: int) -> Measurer:
        """A worker process of the device's."""
        return Measurer(problem, self.device, seed)

    def pool(self, problem: Problem) -> Compiles:
        """A compile server of the run's own."""
        return CompilePool(problem, self.target)

    def lease(self, wait_s: float) -> AbstractContextManager[bool]:
        """A file lock named by the device."""
        return device_lease(self.device, settings.current().lock_dir, wait_s)
