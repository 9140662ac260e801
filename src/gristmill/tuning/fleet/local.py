"""This machine's devices as the sites of a fleet: a worker process each, one compile server."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

from gristmill import settings
from gristmill.core.problem import Problem
from gristmill.core.target import device_target
from gristmill.errors import InvalidInputError, TuningError
from gristmill.tuning.fleet.compiling import SharedPool
from gristmill.tuning.fleet.server import CompileServer
from gristmill.tuning.sites import LocalSite

LEASE_WAIT_S = 10.0  # for another tuner on the device; then the fleet does without it


class HeldSite(LocalSite):
    """A device that a fleet holds from its first problem to its last: nobody else measures there
    between two."""

    def __init__(self, device: torch.device, server: CompileServer, beside: int = 1) -> None:
        """`beside`: how many devices share the server."""
        super().__init__(device)
        self._server, self._beside = server, beside
        self._held = ExitStack()

    @property
    def jobs(self) -> int:
        """Its share of the compilers, one at least."""
        return max(1, settings.current().compile_jobs // self._beside)

    def pool(self, problem: Problem) -> SharedPool:
        """Of the machine's compile server."""
        every = settings.current().compile_jobs
        return SharedPool(self._server.submit, problem, self.target, every)

    def lease(self, wait_s: float) -> AbstractContextManager[bool]:
        """Held already."""
        del wait_s
        return nullcontext(True)

    def open(self) -> None:
        """Take the device's lease."""
        if not self._held.enter_context(super().lease(LEASE_WAIT_S)):
            self.close()
            raise TuningError(f"another process is measuring on {self.name}")

    def close(self) -> None:
        """Give the lease back."""
        self._held.close()


class LocalFleet:
    """The sites of some devices, and what they share. Use as a context manager."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.server = CompileServer()
        self.sites = [HeldSite(device, self.server, len(devices)) for device in devices]

    def __enter__(self) -> list[HeldSite]:
        return self.sites

    def __exit__(self, *exc: object) -> None:
        self.server.close()


def devices_named(names: Sequence[str] | str | None) -> list[torch.device]:
    """Devices by their names: `all` visible GPUs, or some of them (`0`, `cuda:1`), or `cpu`; by
    default the GPUs of the current one's kind, and where there is none the CPU.

    Raises:
        InvalidInputError: a name that is no device here, or one twice.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.device("cuda", index) for index in range(count)]
    if names is None:
        if not gpus:
            return [torch.device("cpu")]
        current = device_target(torch.device("cuda", torch.cuda.current_device())).key
        return [gpu for gpu in gpus if device_target(gpu).key == current]
    asked = [names] if isinstance(names, str) else [str(name) for name in names]
    known = {**{str(gpu.index): gpu for gpu in gpus}, **{str(gpu): gpu for gpu in gpus}}
    known |= {"cpu": torch.device("cpu")}
    if asked == ["all"] and gpus:
        return gpus
    found = [known[name] for name in asked if name in known]
    unknown = [name for name in asked if name not in known]
    if unknown or not found or len(set(found)) < len(found):
        fault = f"{unknown[0]!r} is none of them" if unknown else "each counts once"
        raise InvalidInputError(
            f"`devices` is {','.join(asked)!r}; torch sees {count} GPU(s) here, and {fault}. Name "
            "some by number ('0,1'), or 'all' of them, or 'cpu'; `gristmill doctor` says what is "
            "wrong with a GPU that is missing."
        )
    return found
