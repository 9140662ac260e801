"""What runs on the machines of a cluster: plain classes, which `cluster` makes Ray actors of.

An actor hosts the same worker process as a local run has, and hands its JSON through: a kernel that
traps takes the worker along and the actor stays. The worker ends with its actor. Actors import no
torch: they start in a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from gristmill import settings
from gristmill.core.plan import Outcome
from gristmill.measure.isolation import Child, ChildDied, ChildTimedOut
from gristmill.measure.lease import identity_lease
from gristmill.tuning.children import WORKER
from gristmill.tuning.fleet.server import CompileServer

Reply = dict[str, Any]  # `value`, or `died` (with `left`) or `timed_out` and how


class WorkerHost:
    """The worker of one device of this machine."""

    def __init__(self) -> None:
        self._child = Child(WORKER)
        self._held = ExitStack()
        self._holds = ""

    def start(self) -> Reply:
        """Start the worker if there is none; the value is how often it was started."""
        return self._reply(self._start)

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> Reply:
        """The worker's answer."""
        return self._reply(lambda: self._child.ask(message, timeout_s))

    def hold(self, identity: str, wait_s: float) -> bool:
        """Hold the device of this name among the tuners of this machine, as long as this lives."""
        if self._holds != identity:
            lease = identity_lease(identity, settings.current().lock_dir, wait_s)
            if not self._held.enter_context(lease):
                return False
            self._holds = identity
        return True

    def stop(self) -> None:
        """End the worker."""
        self._child.stop()

    def _start(self) -> int:
        self._child.start()
        return self._child.started

    def _reply(self, act: Any) -> Reply:
        try:
            return {"value": act()}
        except ChildTimedOut as error:
            return {"timed_out": str(error)}
        except ChildDied as error:
            return {"died": str(error), "left": error.left}


class CompileHost:
    """The compile server of this machine, for all of its devices; binaries land in its disk
    cache."""

    def __init__(self) -> None:
        self._server = CompileServer()

    def compile(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer."""
        try:
            return self._server.submit(request).result()
        except ChildDied as error:
            return {"outcome": Outcome("crash", str(error)).to_json()}
