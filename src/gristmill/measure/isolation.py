"""A child process that answers JSON requests: timed out, killed and started again, so that a kernel
that traps or hangs takes nobody down with it.

The child is a fresh interpreter running one of our modules (never a fork: CUDA does not survive
one; never `multiprocessing`: it would import the user's `__main__` again), in a session of its own
so that Ctrl-C reaches only the parent. What crosses is one JSON object a line over a socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from typing_extensions import Self

from gristmill.settings import child_environment

ROOT = str(Path(__file__).resolve().parents[2])
# Not `-m`: it looks in the current folder first, where a user may have a `random.py`.
BOOTSTRAP = """import sys
sys.path[:] = [path for path in sys.path if path]
import runpy
runpy.run_module(sys.argv[1], run_name="__main__")
"""
# Before anything is imported: what nobody else wants of the processors; with it, on Linux, of the
# disks. Whatever the child starts is like it.
LEAST = """import os
try:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
except (AttributeError, OSError):
    pass
os.nice(19)
"""
REASON_CHARS = 400
MEANWHILE_S = 0.02
PR_SET_PDEATHSIG = 1  # linux/prctl.h
START_TIMEOUT_S = 120.0  # importing torch and Triton, and starting CUDA, on a cold and busy machine


class ChildDied(Exception):
    """The child ended before it answered; `left` says that it went by itself, with status 0."""

    def __init__(self, message: str, left: bool = False) -> None:
        super().__init__(message)
        self.left = left


class ChildTimedOut(Exception):
    """The child did not answer in time."""


class Lines:
    """JSON objects, one a line, over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = b""

    def send(self, message: Mapping[str, Any]) -> None:
        self.connection.settimeout(None)  # a reader's time-out stays on the socket
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    @property
    def buffered(self) -> bool:
        """Whether a whole object has arrived already."""
        return b"\n" in self._buffer

    def receive(self, timeout_s: float | None) -> dict[str, Any] | None:
        """The next object, or `None` at the end of the stream. Raises `TimeoutError`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.buffered:
            if deadline is not None:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError
                self.connection.settimeout(remaining)
            else:
                self.connection.settimeout(None)
            data = self.connection.recv(1 << 16)
            if not data:
                return None
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)


class Child:
    """The parent's end: runs a module of ours in a new interpreter, sends requests, kills what does
    not answer."""

    def __init__(
        self, module: str, environment: Mapping[str, str] | None = None, least: bool = False
    ) -> None:
        """`least`: with the least priority that there is."""
        self.module = module
        self._code = LEAST + BOOTSTRAP if least else BOOTSTRAP
        self.environment = dict(environment or {})
        self.started = 0
        self._owner = os.getpid()
        self._asked = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: Lines | None = None
        self._log: IO[bytes] | None = None

    @property
    def alive(self) -> bool:
        mine = self._owner == os.getpid()  # a fork of this process has no child
        return mine and self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the child if it is not running; returns once it says it is ready."""
        if self.alive:
            return
        self.stop()
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        # Only ours goes before the standard library: a user's `random.py` must not get there.
        first = [ROOT, *filter(None, [child_environment().get("PYTHONPATH")])]
        # A child measures or tunes what it is asked for, and nothing of its own accord.
        ours_alone = {"PYTHONPATH": os.pathsep.join(first), "GRISTMILL_TUNE": "never"}
        environment = child_environment(**ours_alone, **self.environment)
        paths = json.dumps(our_paths())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self._code, self.module, str(theirs.fileno()), paths],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise ChildDied(f"{sys.executable} cannot be run: {error}") from error
        finally:
            theirs.close()
        self._lines = Lines(ours)
        self._owner = os.getpid()
        ready = self.receive(START_TIMEOUT_S)
        if not ready.get("ready"):
            raise ChildDied(f"{self.module} said {ready} in place of ready")
        self.started += 1

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one request (starting the child if needed)."""
        self.start()
        assert self._lines is not None
        try:
            self._lines.send(message)
        except OSError as error:
            raise self._death() from error

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next answer.

        Raises:
            ChildTimedOut: none in time; the child has been killed.
            ChildDied: the child has ended; the message says how.
        """
        assert self._lines is not None
        try:
            message = self._lines.receive(timeout_s)
        except TimeoutError:
            self.stop()
            raise ChildTimedOut(f"no answer within {timeout_s:.0f} s") from None
        except OSError as error:
            raise self._death() from error
        if message is None:
            raise self._death()
        return message

    def ask(
        self,
        message: Mapping[str, Any],
        timeout_s: float,
        meanwhile: Callable[[], float] | None = None,
    ) -> dict[str, Any]:
        """`send`, then `receive` the answer with the question's `id`; others come too late.

        `meanwhile` is called every 20 ms until then, and returns for how many seconds it kept the
        child from its work: those do not count.
        """
        self._asked += 1
        self.send({**message, "id": self._asked})
        deadline = time.monotonic() + timeout_s
        while True:
            if meanwhile is not None:
                deadline += self._wait(deadline, meanwhile)
                timeout_s = deadline - time.monotonic()
            answer = self.receive(timeout_s)
            if answer.get("id") == self._asked:
                return answer

    def _wait(self, deadline: float, meanwhile: Callable[[], float]) -> float:
        """Wait for something to receive; how many seconds do not count."""
        kept_s = 0.0
        while time.monotonic() < deadline + kept_s:
            kept_s += meanwhile()
            assert self._lines is not None
            if self._lines.buffered or select.select([self], [], [], MEANWHILE_S)[0]:
                break
        return kept_s

    def pause(self) -> None:
        """Let the child and its group stand still until `resume`; it does when this returns."""
        if self._signal(signal.SIGSTOP) and self._process is not None:
            # The signal alone is no stop yet: the child may be on another processor.
            with contextlib.suppress(ChildProcessError):
                how = os.WSTOPPED | os.WEXITED | os.WNOWAIT
                os.waitid(os.P_PID, self._process.pid, how)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the child and everything that it started, from any thread; whoever waits for its
        answer hears that it died."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> bool:
        """Send the child's group a signal; whether there is one."""
        process = self._process
        if process is None or self._owner != os.getpid() or process.returncode is not None:
            return False
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    @property
    def buffered(self) -> bool:
        """Whether a whole answer has arrived already."""
        return self._lines is not None and self._lines.buffered

    def fileno(self) -> int:
        """The socket, for `select`."""
        assert self._lines is not None
        return self._lines.connection.fileno()

    def stop(self) -> None:
        """Kill the child and everything that it started, and close what leads to it."""
        process, self._process = self._process, None
        if self._lines is not None:
            self._lines.connection.close()
            self._lines = None
        if process is not None and self._owner != os.getpid():
            process.returncode = 0  # another process's to end and to wait for
        elif process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _death(self) -> ChildDied:
        process = self._process
        code = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=5)
        words = self._last_words()
        self.stop()
        if code is None:
            how = "closed its connection"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (often for want of memory)"
        else:
            how = f"exited with status {code}"
        return ChildDied(f"the worker {how}{words}", left=code == 0)

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0, os.SEEK_END)
        size = self._log.tell()
        self._log.seek(max(0, size - 4096))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:REASON_CHARS]}" if lines else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def our_paths() -> list[str]:
    """Where a child looks last, beside its interpreter's own folders: what the parent imports from
    (the folder of the user's script, with its plug-ins)."""
    own = {os.path.realpath(path) for path in sysconfig.get_paths().values()}
    found: list[str] = []
    for entry in sys.path:
        path = os.path.realpath(entry or os.curdir)
        if Path(path).is_dir() and path not in own and path not in found:
            found.append(path)
    return found


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends: what stands still
    (`Child.pause`) cannot look for itself. Nothing where there is no such kernel."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def connect() -> Lines:
    """The child's connection; the child dies with its parent from here on."""
    parent = os.getppid()
    sys.path.extend(path for path in json.loads(sys.argv[3]) if path not in sys.path)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    return Lines(socket.socket(fileno=int(sys.argv[2])))
