"""Tuning while the process is idle: a thread that watches when it is, and a process of the least
priority that tunes meanwhile.

The thread does no tuning: a strategy's arithmetic would hold the interpreter's lock. It makes no
CUDA call either: one of those could break another thread's capture. It reads the process's
processor time, raises and lowers a flag (`gate`), and hands on what was found.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gristmill import settings
from gristmill.measure.isolation import Child, ChildDied, ChildTimedOut
from gristmill.tuning.gate import Flag, jobs_settings

# Between two looks while the process is at work. (There is nothing to stop then. While a trial may
# run they are `isolation.MEANWHILE_S`: how late it is stopped.)
REST_S = 0.25
QUIET_S = 0.25  # without work, after which the process is idle
# Of processor time between two looks, both: work. A thread that wakes now and then is none.
WORK_S, WORK_SHARE = 200e-6, 0.01
ANSWER_S = 300.0  # beyond its budget, while nothing keeps it from its work
AGAIN_S = 30.0  # until the next try: another process may be tuning the key, or have the device
KEPT = 32  # answers, the latest
TRIES = 3  # at a problem whose tuning process died, or gave way before it had a plan

Adopt = Callable[[], Any]


class Activity:
    """Whether this process is at work, by its processor time, that of the asking thread left out.

    Issuing launches takes processor time, and so does waiting for a device as CUDA does by default.
    A call costs nothing for it.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = lambda: time.process_time() - time.thread_time(),
    ) -> None:
        self._clock, self._used = clock, used
        self._before, self._looked = used(), clock()
        self._last = self._looked

    def busy(self) -> bool:
        """Whether there was work since the last question, or within the quarter second before."""
        used, now = self._used(), self._clock()
        if used - self._before > max(WORK_S, WORK_SHARE * (now - self._looked)):
            self._last = now
        self._before, self._looked = used, now
        return now - self._last < QUIET_S


@dataclass
class Wish:
    """A problem that was called without a measured plan.

    Attributes:
        request: what the tuning process is asked.
        refresh: what finds out about new plans.
        adopt: whom to tell then.
        spent_s: what was spent on it.
        after: when it may be tried (monotonic).
    """

    key: tuple[str, ...]
    request: dict[str, Any]
    refresh: Callable[[], None]
    adopt: list[Adopt] = field(default_factory=list)
    spent_s: float = 0.0
    tries: int = 0
    after: float = 0.0


class Background:
    """The queue, its thread and the tuning process.

    Attributes:
        answers: what the tuning process said of each wish, in order, the latest.
    """

    module = "gristmill.ops.idle_process"

    def __init__(self, allowed: Callable[[], bool], activity: Activity | None = None) -> None:
        """`allowed`: whether anything may be tuned now (plans may be frozen)."""
        self.answers: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._allowed = allowed
        self._activity = activity
        self._wishes: dict[tuple[str, ...], Wish] = {}
        self._seen: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._child: Child | None = None
        self._total_s = 0.0

    def want(
        self,
        key: tuple[str, ...],
        request: dict[str, Any],
        refresh: Callable[[], None],
        adopt: Adopt,
    ) -> None:
        """Have a problem tuned, once, when there is time for it. Where that gives plans, `refresh`
        is called, then each `adopt` (or what it is a weak reference to)."""
        with self._lock:
            wish = self._wishes.get(key)
            if wish is None and key not in self._seen:
                self._seen.add(key)
                wish = self._wishes[key] = Wish(key, request, refresh)
            if wish is None or self._stop.is_set():
                return
            if adopt not in wish.adopt:
                wish.adopt.append(adopt)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._main, name="gristmill-idle", daemon=True
                )
                self._thread.start()
        self._wake.set()

    @property
    def waiting(self) -> int:
        """How many problems are not done."""
        return len(self._wishes)

    def stop(self) -> None:
        """End it, at once: what the tuning process has measured is in the store."""
        self._stop.set()
        self._wake.set()
        child = self._child
        if child is not None:
            child.kill()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=2.0)

    def _main(self) -> None:
        self._activity = self._activity or Activity()
        flag = Flag()
        try:
            while True:
                self._wake.clear()  # before a look at what it may be set for
                if self._stop.is_set():
                    return
                with self._lock:
                    wishes = list(self._wishes.values())
                wish = next((w for w in wishes if w.after <= time.monotonic()), None)
                if not wishes or self._total_s >= settings.current().idle_budget_s:
                    self._end_child()
                    self._wake.wait()
                elif wish is None:
                    self._wake.wait(min(AGAIN_S, 1.0))
                elif self._activity.busy() or not self._allowed():
                    self._stop.wait(REST_S)
                else:
                    self._try(wish, flag)
        finally:
            self._end_child()

    def _try(self, wish: Wish, flag: Flag) -> None:
        """Work on a wish; one that fails in a way nobody thought of is dropped, and no more."""
        try:
            self._work(wish, flag)
        except Exception as error:  # noqa: BLE001 - in a user's process, for which this is nothing
            self.answers.append({"key": wish.key, "error": f"{type(error).__name__}: {error}"})
            with self._lock:
                self._wishes.pop(wish.key, None)

    def _work(self, wish: Wish, flag: Flag) -> None:
        """Have the tuning process work on a wish, until it answers, or nothing may be tuned."""
        wish.tries += 1
        now = settings.current()
        seconds = min(now.budget_s - wish.spent_s, now.idle_budget_s - self._total_s)
        own = {"settings": jobs_settings(), "flag": flag.path, "budget_s": max(seconds, 1.0)}
        timeout_s = own["budget_s"] + ANSWER_S
        child = self._child = self._child or Child(self.module, least=True)
        try:
            answer = child.ask({**wish.request, **own}, timeout_s, lambda: self._watch(flag))
        except (ChildDied, ChildTimedOut, _Forbidden) as error:
            answer = {"error": str(error), "spent_s": 0.0}
            self._child = None
            child.stop()
        finally:
            flag.set(busy=True)
        self.answers.append({"key": wish.key, **answer})
        wish.after = time.monotonic() + AGAIN_S
        wish.spent_s += answer["spent_s"]
        self._total_s += answer["spent_s"]
        enough = wish.tries >= TRIES or wish.spent_s >= now.budget_s
        with self._lock:
            del self._wishes[wish.key]
            if not (answer.get("tuned") or enough or self._stop.is_set()):
                self._wishes[wish.key] = wish  # after the others
        if answer.get("tuned") and self._allowed():
            wish.refresh()
            for adopt in wish.adopt:
                call = adopt() if isinstance(adopt, weakref.WeakMethod) else adopt
                if call is not None:
                    call()

    def _watch(self, flag: Flag) -> float:
        """Look whether the process is at work, and say so; for how long it was."""
        assert self._activity is not None
        if self._stop.is_set() or not self._allowed():
            raise _Forbidden
        busy = self._activity.busy()
        flag.set(busy=busy)
        if not busy or self._child is None:
            return 0.0
        start = time.monotonic()
        with contextlib.suppress(OSError, ValueError):  # an answer ends the rest
            select.select([self._child], [], [], REST_S)
        return time.monotonic() - start

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.stop()


class _Forbidden(Exception):
    """Nothing may be tuned any more."""


_background: Background | None = None
_making = threading.Lock()


def idle_tuner(allowed: Callable[[], bool]) -> Background:
    """This process's, made at the first use."""
    global _background
    with _making:
        if _background is None:
            _background = Background(allowed)
        return _background


def stop_idle_tuner() -> None:
    """End this process's, if there is one; a later wish makes another."""
    global _background
    one, _background = _background, None
    if one is not None:
        one.stop()


def _after_fork() -> None:
    """A fork has no thread, and its parent's tuning process is its parent's."""
    global _background, _making
    _background, _making = None, threading.Lock()


atexit.register(stop_idle_tuner)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
