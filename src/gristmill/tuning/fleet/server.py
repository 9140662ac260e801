"""One compile server for all the devices of a machine.

Devices of one target need each binary once, and the cores are the machine's, not a device's: a
server for each run would start as many compilers as cores for every GPU.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from gristmill.measure.isolation import Child, ChildDied, ChildTimedOut
from gristmill.measure.memory import too_large
from gristmill.tuning.children import COMPILER

ANSWER_S = 30.0  # for the rest of an answer that has begun
POLL_S = 0.5
ENDED = "the compile server has ended"


class CompileServer:
    """The compile server's other end, for any number of threads. It starts with the first request,
    and again after it has died; what it was asked until then fails with `ChildDied`.

    One that has grown too large is asked nothing more: what comes meanwhile waits until it has
    answered everything, and goes to another.
    """

    def __init__(self) -> None:
        self._child = Child(COMPILER)
        self._lock = threading.Lock()
        self._futures: dict[int, Future[dict[str, Any]]] = {}
        self._held: list[tuple[Mapping[str, Any], Future[dict[str, Any]]]] = []
        self._full = False
        self._limit_bytes = 0.0
        self._next = 0
        self._closed = False
        self._heard = time.monotonic()
        self._patience_s = 0.0

    def submit(self, request: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Start a compile; the future gives the server's answer, or raises `ChildDied`."""
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._closed:
                future.set_exception(ChildDied(ENDED))
            elif self._full:
                self._held.append((request, future))
            else:
                self._send(request, future)
        return future

    def _send(self, request: Mapping[str, Any], future: Future[dict[str, Any]]) -> None:
        try:
            if not self._child.alive:
                self._fail(ENDED)
                self._child.start()
                reader = threading.Thread(target=self._read, args=(self._child.started,))
                reader.daemon = True
                reader.start()
            if not self._futures:
                self._heard = time.monotonic()
            self._patience_s = max(self._patience_s, request["timeout_s"] + ANSWER_S)
            self._limit_bytes = request["growth_bytes"]
            self._next += 1
            self._futures[self._next] = future
            self._child.send({**request, "id": self._next})
        except (ChildDied, ChildTimedOut) as error:
            self._futures.pop(self._next, None)
            self._fail(str(error))
            future.set_exception(ChildDied(str(error)))

    def _overdue(self) -> bool:
        return bool(self._futures) and time.monotonic() - self._heard > self._patience_s

    def _fail(self, reason: str) -> None:
        futures, self._futures = self._futures, {}
        for future in futures.values():
            future.set_exception(ChildDied(reason))

    def _read(self, generation: int) -> None:
        """Answer futures as the server answers, until it dies, is closed or replaced."""
        child = self._child
        while True:
            try:
                ready = select.select([child.fileno()], [], [], POLL_S)[0]
            except (OSError, ValueError, AssertionError):  # its connection is closed
                return
            with self._lock:
                if self._closed or child.started != generation:
                    return
                try:
                    if not ready and self._overdue():
                        child.kill()  # it kills late compiles itself: it hangs
                    answers = [child.receive(ANSWER_S)] if ready else []
                    while child.buffered:
                        answers.append(child.receive(ANSWER_S))
                except (ChildDied, ChildTimedOut) as error:
                    self._fail(str(error))
                    self._replace()
                    return
                if answers:
                    self._heard = time.monotonic()
                futures = [(self._futures.pop(a["id"], None), a) for a in answers]
                grown = (answer.get("grown", {}) for answer in answers)
                self._full |= any(too_large(one, self._limit_bytes) for one in grown)
                self._replace()
            for future, answer in futures:
                if future is not None:
                    future.set_result(answer)

    def _replace(self) -> None:
        """Once nothing is left of a server that is too large: another one for what has waited."""
        if self._full and not self._futures:
            self._full = False
            self._child.stop()
            held, self._held = self._held, []
            for request, future in held:
                self._send(request, future)

    def close(self) -> None:
        """End the server and whatever it compiles."""
        with self._lock:
            self._closed = True
            self._child.stop()
            self._fail(ENDED)
            for _, future in self._held:
                future.set_exception(ChildDied(ENDED))
            self._held.clear()
