"""A device of another machine as a site: its worker behind a Ray actor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from typing_extensions import Self

from gristmill import settings
from gristmill.core.problem import Problem
from gristmill.core.target import Target
from gristmill.errors import TuningError, WorkerLostError
from gristmill.measure.isolation import (
    REASON_CHARS,
    START_TIMEOUT_S,
    ChildDied,
    ChildTimedOut,
)
from gristmill.tuning.fleet.actors import Reply
from gristmill.tuning.fleet.compiling import SharedPool, Submit
from gristmill.tuning.fleet.local import LEASE_WAIT_S
from gristmill.tuning.measurer import FIRST_TIMEOUT_S, Measurer

PLACE_S = 30.0  # for the cluster to give an actor its device
NETWORK_S = 15.0  # on top of what a worker may take, for its answer to get here


class ActorLost(ChildDied):
    """The actor is gone, with the worker that it hosted."""


class RemoteChild:
    """What `isolation.Child` is to a worker here, for one behind an actor.

    An actor that is gone (killed, or out of memory) is replaced on its machine, once for a
    question, and asked again: it costs the trial that was in flight.
    """

    def __init__(self, ray: Any, name: str, place: Callable[[], Any]) -> None:
        """`place` asks the cluster for an actor, and does not wait for it."""
        self._ray, self._name, self._place = ray, name, place
        self._actor: Any = None
        self._generation = 0
        self._dropped = False
        self.identity = ""  # of the device, once it is held
        self.started: Any = None  # tells one worker from the next

    def start(self) -> None:
        """Place an actor and start its worker, if need be.

        Raises:
            ChildDied, ChildTimedOut: the cluster gives no actor; its worker does not start.
        """
        placed_before = self._actor is not None
        try:
            self._start()
        except ActorLost:
            if not placed_before:
                raise
            self._start()  # it died since the last question

    def _start(self) -> None:
        if self._actor is None:
            self._actor = self._place()
            self._generation += 1
            if self.identity and not self.hold(self.identity):
                self.stop()
                raise ChildDied(f"another process is measuring on {self._name}")
        self.started = (self._generation, _value(self._call("start", START_TIMEOUT_S + PLACE_S)))

    def hold(self, identity: str) -> bool:
        """Hold the device of this name among the tuners of its machine, now and in what replaces
        the actor."""
        self.identity = identity
        return self._call("hold", START_TIMEOUT_S, identity, LEASE_WAIT_S)

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The worker's answer.

        Raises:
            ChildTimedOut, ChildDied: as `isolation.Child.ask`.
            WorkerLostError: the actor is gone, and the cluster gives no other in its place.
        """
        try:
            return self._ask(message, timeout_s)
        except ActorLost:
            if self._dropped:
                self._dropped = False
                raise
        try:
            self.start()
        except (ChildDied, ChildTimedOut) as error:
            raise WorkerLostError(f"{self._name} is gone: {error}") from error
        return self._ask(message, timeout_s + FIRST_TIMEOUT_S)

    def _ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        # it starts a worker that has left or died since
        longest_s = timeout_s + START_TIMEOUT_S
        return _value(self._call("ask", longest_s, dict(message), timeout_s))

    def _call(self, method: str, timeout_s: float, *args: Any) -> Any:
        """What a method of the actor gives."""
        errors = self._ray.exceptions
        if self._actor is None:
            raise ActorLost(f"{self._name} has no actor")
        try:
            found = getattr(self._actor, method).remote(*args)
            return self._ray.get(found, timeout=timeout_s + NETWORK_S)
        except errors.GetTimeoutError:
            self.stop()
            raise ChildTimedOut(f"no answer from {self._name} within {timeout_s:.0f} s") from None
        except errors.RayError as error:
            self.stop()
            raise ActorLost(why_lost(error)) from error

    def kill(self) -> None:
        """End the actor and its worker, from any thread: the question that it has is not asked
        again."""
        self._dropped = True
        actor = self._actor
        if actor is not None:
            self._ray.kill(actor)

    def stop(self) -> None:
        """End the actor and its worker; another start places another."""
        actor, self._actor = self._actor, None
        if actor is not None:
            self._ray.kill(actor)


def _value(reply: Reply) -> Any:
    """What a reply of a `WorkerHost` gives, or the failure that it tells of."""
    if "timed_out" in reply:
        raise ChildTimedOut(reply["timed_out"])
    if "died" in reply:
        raise ChildDied(reply["died"], left=reply["left"])
    return reply["value"]


def why_lost(error: BaseException) -> str:
    """A Ray error in one line: of a traceback the end, which says what was wrong."""
    text = str(error).strip()
    if "No module named 'gristmill" in text:
        return "gristmill is not installed there, or another version"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:1] + lines[-1:] if len(lines) > 1 else lines)[:REASON_CHARS]


class RemoteMeasurer(Measurer):
    """Measures candidates of one problem behind an actor. Use as a context manager."""

    def __init__(
        self, child: RemoteChild, problem: Problem, device: torch.device, seed: int, threads: int
    ) -> None:
        super().__init__(problem, device, seed)
        self._base["threads"] = threads
        self._remote = child

    def __enter__(self) -> Self:
        self._child = self._remote
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """The actor stays for the next problem."""


class RemoteSite:
    """A device of a machine of the cluster.

    Attributes:
        name: the machine's, and which of its devices.
        target, versions, jobs: known once it was described.
    """

    target: Target
    versions = ""
    jobs = 1

    def __init__(self, child: RemoteChild, name: str, device: str, submit: Submit) -> None:
        """`submit` has a candidate compiled on that machine."""
        self.name, self._child, self._submit = name, child, submit
        self._device = torch.device(device)
        self._threads, self._every = torch.get_num_threads(), 1

    def describe(self, ops: Sequence[str]) -> dict[str, Any]:
        """What its worker says of it (`gristmill.tuning.describe`).

        Raises:
            TuningError: there is none.
        """
        question = {"do": "describe", "device": str(self._device), "threads": self._threads}
        question["l2"] = settings.current().l2  # part of the target
        try:
            self._child.start()
            answer = self._child.ask({**question, "ops": list(ops)}, START_TIMEOUT_S)
        except (ChildDied, ChildTimedOut) as error:
            raise TuningError(str(error)) from error
        if "error" in answer:
            raise TuningError(answer["error"])
        return answer["facts"]

    def know(self, facts: Mapping[str, Any], beside: int) -> None:
        """Take over what it said; `beside`: how many devices share its machine's compilers."""
        self.target = Target(**facts["target"])
        self.versions = facts["provenance"]
        self._every = facts["compile_jobs"]
        self.jobs = max(1, self._every // beside)
        self._identity: str = facts["identity"]

    def measurer(self, problem: Problem, seed: int) -> RemoteMeasurer:
        """The worker behind its actor."""
        return RemoteMeasurer(self._child, problem, self._device, seed, self._threads)

    def pool(self, problem: Problem) -> SharedPool:
        """Of its machine's compile server."""
        return SharedPool(self._submit, problem, self.target, self._every)

    def lease(self, wait_s: float) -> AbstractContextManager[bool]:
        """Held already."""
        del wait_s
        return nullcontext(True)

    def open(self) -> None:
        """Hold the device, on its machine."""
        try:
            self._child.start()
            mine = self._child.hold(self._identity)
        except (ChildDied, ChildTimedOut) as error:
            raise TuningError(str(error)) from error
        if not mine:
            raise TuningError(f"another process is measuring on {self.name}")

    def close(self) -> None:
        """End its actor."""
        self._child.stop()
