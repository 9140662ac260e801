"""Compiles candidates of users' kernels ahead of their trial: the compile server of `tuning`, with
kernels from a task's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Self

from gristmill.compile.executor import EXECUTOR
from gristmill.core.config import Config
from gristmill.core.launch import Launch
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.problem import Problem
from gristmill.core.target import Target
from gristmill.errors import CompileError
from gristmill.measure.isolation import REASON_CHARS, connect
from gristmill.tuners.arguments import on_meta
from gristmill.tuners.travel import unpack
from gristmill.tuners.trial import Call
from gristmill.tuners.worker import TASK
from gristmill.tuning.compiler import CompilePool, Server
from gristmill.tuning.peers import fitting


class KernelCompilePool(CompilePool):
    """Compiles configs of the kernel in a folder. Use as a context manager."""

    server = "gristmill.tuners.compiler"

    def __init__(
        self,
        folder: str,
        target: Target,
        resolve: Callable[[Config], Call],
        jobs: int | None = None,
    ) -> None:
        super().__init__(Problem(folder, ()), target, jobs)
        self._base["folder"] = folder
        self._resolve = resolve

    def submit(self, candidate: Candidate) -> None:
        """Start compiling a candidate; one whose call cannot be made is left to its trial."""
        try:
            self._resolve(candidate.config).to_json()
        except Exception:  # noqa: BLE001 - a user's function
            self._lost.append((candidate, Outcome("ok")))
        else:
            super().submit(candidate)

    def encode(self, candidate: Candidate) -> dict[str, Any]:
        """A candidate as it crosses to the server: with its call."""
        call = self._resolve(candidate.config).to_json()
        return {**super().encode(candidate), "call": call}


class NothingToCompile:
    """Stands for a compile server: a candidate is compiled by its trial."""

    def __init__(self) -> None:
        self._waiting: list[Candidate] = []

    @property
    def pending(self) -> int:
        return len(self._waiting)

    def submit(self, candidate: Candidate) -> None:
        self._waiting.append(candidate)

    def collect(self) -> tuple[Candidate, Outcome]:
        return self._waiting.pop(0), Outcome("ok")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class KernelServer(Server):
    """Compiles calls of the kernel in a request's folder, for arguments without memory."""

    _folder = ""
    _call: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = None

    def warm(self, request: Mapping[str, Any]) -> None:
        """Read the task, once. Where that fails, candidates are left to their trials, which say
        why."""
        if request["folder"] == self._folder:
            return
        self._folder, self._call = request["folder"], None
        try:
            task = json.loads(Path(self._folder, TASK).read_text())
            kernel = unpack(task["function"], Path(self._folder))
            self._call = (kernel, *on_meta(task["arguments"]))
        except Exception:  # noqa: BLE001 - a user's module
            return

    def compile(self, request: Mapping[str, Any]) -> Outcome:
        """What the compiler says of a call."""
        self.warm(request)
        if self._call is None:
            return Outcome("ok")
        target, call = Target(**request["target"]), Call.from_json(request["candidate"]["call"])
        kernel, args, kwargs = self._call
        launch = Launch(kernel, call.grid or (1,), args, {**kwargs, **call.keywords})
        try:
            return fitting([EXECUTOR.compile(launch, target)], target)
        except CompileError as error:
            return Outcome("compile_error", f"{error}"[:REASON_CHARS])


if __name__ == "__main__":
    KernelServer(connect()).run()
