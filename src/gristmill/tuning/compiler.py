"""Compiles candidates ahead of their trial, in parallel, in processes that never touch the device.

`CompilePool` is the tuner's side. The other is this module run by `isolation.Child`: a process that
imports torch and Triton once and forks a child for each candidate (10 ms, against seconds for a new
interpreter), so that a compiler that crashes or hangs takes only its candidate along.
Binaries land in Triton's disk cache, where the worker finds them.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from typing_extensions import Self

from gristmill import settings
from gristmill.compile.executor import EXECUTOR
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Problem
from gristmill.core.registry import implementation
from gristmill.core.target import Target
from gristmill.errors import GristmillError
from gristmill.measure.isolation import (
    REASON_CHARS,
    Child,
    ChildDied,
    ChildTimedOut,
    Lines,
    connect,
)
from gristmill.measure.memory import GB, Growth, resident_bytes, too_large
from gristmill.tuning.children import COMPILER
from gristmill.tuning.peers import fitting
from gristmill.tuning.trial import candidate_from_json, candidate_to_json


def compile_candidate(problem: Problem, target: Target, candidate: Candidate) -> Outcome:
    """`ok` with what the compiler says of the kernel, or `compile_error`; from meta tensors, with
    no device."""
    if not target.is_gpu:
        return Outcome("ok")  # Triton's interpreter takes the source
    impl = implementation(problem.op, candidate.implementation)
    try:
        config = impl.config(candidate.config, problem, target)
        values = problem.meta()
        outputs, workspace = impl.allocate(values, config)
        launches = impl.launches(values, outputs, workspace, config)
        binaries = [EXECUTOR.compile(launch, target) for launch in launches]
    except GristmillError as error:
        return Outcome("compile_error", f"{error}"[:REASON_CHARS])
    return fitting(binaries, target)


def compile_request(problem: Problem, target: Target, jobs: int) -> dict[str, Any]:
    """What every request for a problem says, beside its number and the candidate."""
    return {
        "problem": problem.to_json(),
        "target": {name: getattr(target, name) for name in target.__dataclass_fields__},
        "jobs": jobs,
        "timeout_s": settings.current().candidate_timeout_s,
        "growth_bytes": settings.current().growth_gb * GB,
    }


class CompilePool:
    """Compiles candidates of one problem in `jobs` processes. Use as a context manager.

    A server that has grown too large gets nothing more: what is asked meanwhile waits until it has
    answered everything, and goes to another.
    """

    server = COMPILER

    def __init__(self, problem: Problem, target: Target, jobs: int | None = None) -> None:
        self._child = Child(self.server)
        self._base = compile_request(problem, target, jobs or settings.current().compile_jobs)
        self._timeout_s: float = self._base["timeout_s"]
        self._pending: dict[int, Candidate] = {}
        self._lost: list[tuple[Candidate, Outcome]] = []
        self._held: list[Candidate] = []
        self._full = False
        self._next = 0

    @property
    def pending(self) -> int:
        return len(self._pending) + len(self._lost) + len(self._held)

    def submit(self, candidate: Candidate) -> None:
        """Start compiling a candidate."""
        if self._full:
            self._held.append(candidate)
            return
        if self._pending and not self._child.alive:
            self._lose("the compile server has ended")
        self._next += 1
        self._pending[self._next] = candidate
        try:
            self._child.send({**self._base, "id": self._next, "candidate": self.encode(candidate)})
        except (ChildDied, ChildTimedOut) as error:
            self._lose(str(error))

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """A candidate as it crosses to the server."""
        return candidate_to_json(candidate)

    def _lose(self, reason: str) -> None:
        """What was asked of a server that is gone: a new one knows nothing of it."""
        self._child.stop()
        self._lost += [(c, Outcome("crash", reason)) for c in self._pending.values()]
        self._pending.clear()
        self._replace()

    def _replace(self) -> None:
        """Once nothing is left of a server that is too large: another one for what has waited."""
        if not self._full or self._pending:
            return
        self._full = False
        self._child.stop()
        held, self._held = self._held, []
        for candidate in held:
            self.submit(candidate)

    def collect(self) -> tuple[Candidate, Outcome]:
        """The next candidate that is done, in any order (there must be one pending)."""
        if not self._lost:
            try:
                if not self._child.alive:
                    raise ChildDied("the compile server has ended")
                answer = self._child.receive(self._timeout_s + 30.0)
                candidate = self._pending.pop(answer["id"])
                self._full = self._full or bool(too_large(answer.get("grown", {})))
                self._replace()
                return candidate, Outcome.from_json(answer["outcome"])
            except (ChildDied, ChildTimedOut) as error:
                self._lose(str(error))
        return self._lost.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._child.stop()


class Answer(Protocol):
    """What a compile came to."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass
class _Job:
    identifier: int
    pid: int
    deadline: float
    limit_bytes: float
    killed: str = ""
    data: bytes = field(default=b"")


def _fork(
    compile_request: Callable[[Mapping[str, Any]], Answer], request: Mapping[str, Any]
) -> tuple[int, int]:
    """Compile in a forked child; its pid and the end of the pipe that its outcome comes through."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    os.close(read)
    try:
        outcome: Answer
        try:
            outcome = compile_request(request)
        except Exception as error:  # noqa: BLE001 - a launcher may raise anything: its outcome
            outcome = Outcome("crash", f"{type(error).__name__}: {error}"[:REASON_CHARS])
        os.write(write, json.dumps(outcome.to_json()).encode())
    finally:
        os._exit(0)


class Server:
    """Forks up to `jobs` compiles at a time and answers as they end."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.queue: list[dict[str, Any]] = []
        self.running: dict[int, _Job] = {}
        self.growth = Growth()
        self.selector = selectors.DefaultSelector()
        self.selector.register(lines.connection, selectors.EVENT_READ, None)
        self._warmed: set[tuple[str, ...]] = set()

    def warm(self, request: Mapping[str, Any]) -> None:
        """Do what every compile of this request's kind would do first, once, before it forks. Of
        several runs at one server each brings kinds that are new to it."""
        op, name = request["problem"]["op"], request["candidate"]["implementation"]
        target = Target(**request["target"])
        if (kind := (op, name, target.arch)) in self._warmed:
            return
        self._warmed.add(kind)
        implementation(op, name)
        if target.is_gpu:
            EXECUTOR.warm(target)

    def compile(self, request: Mapping[str, Any]) -> Answer:
        """A request's outcome, in a forked child."""
        return compile_candidate(
            Problem.from_json(request["problem"]),
            Target(**request["target"]),
            candidate_from_json(request["candidate"]),
        )

    def run(self) -> None:
        self.growth.since()
        self.lines.send({"ready": True})
        while True:
            for key, _ in self.selector.select(timeout=0.1):
                if key.data is None:
                    if not self._read_requests():
                        return
                else:
                    self._read_outcome(key.fd)
            self._kill_late_and_large()
            while self.queue and len(self.running) < self.queue[0]["jobs"]:
                request = self.queue.pop(0)
                pid, pipe = _fork(self.compile, request)
                deadline = time.monotonic() + request["timeout_s"]
                limit_bytes = resident_bytes() + request["growth_bytes"]
                self.running[pipe] = _Job(request["id"], pid, deadline, limit_bytes)
                self.selector.register(pipe, selectors.EVENT_READ, pipe)

    def _read_requests(self) -> bool:
        request = self.lines.receive(None)
        while request is not None:
            self.warm(request)
            self.queue.append(request)
            if not self.lines.buffered:
                return True
            request = self.lines.receive(None)
        return False

    def _read_outcome(self, pipe: int) -> None:
        job = self.running[pipe]
        data = os.read(pipe, 1 << 16)
        if data:
            job.data += data
            return
        self.selector.unregister(pipe)
        os.close(pipe)
        del self.running[pipe]
        _, status = os.waitpid(job.pid, 0)
        if job.data:
            outcome = json.loads(job.data)
        elif job.killed:
            outcome = Outcome("crash", job.killed).to_json()
        elif time.monotonic() >= job.deadline:
            outcome = Outcome("timeout", "the compiler did not end in time").to_json()
        else:
            how = (
                signal.Signals(os.WTERMSIG(status)).name
                if os.WIFSIGNALED(status)
                else f"status {status}"
            )
            outcome = Outcome("crash", f"the compiler was ended by {how}").to_json()
        answer = {"id": job.identifier, "outcome": outcome, "grown": self.growth.since()}
        self.lines.send(answer)

    def _kill_late_and_large(self) -> None:
        now = time.monotonic()
        for job in self.running.values():
            held_bytes = resident_bytes(job.pid)
            if held_bytes > job.limit_bytes:
                job.killed = f"the compiler came to hold {held_bytes / GB:.1f} GB, and was ended"
            if now >= job.deadline or job.killed:
                os.kill(job.pid, signal.SIGKILL)


if __name__ == "__main__":
    Server(connect()).run()
