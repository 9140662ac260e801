"""Compiles specialisations in parallel, in processes that touch no device.

`Compiler` is the builder's side. The other is this module run by `isolation.Child`: the compile
server of `tuning`, which imports torch and Triton once and forks a child for each specialisation,
so that a compiler that crashes or hangs takes only that one along.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from typing_extensions import Self

from gristmill import settings
from gristmill.aot import abi
from gristmill.aot.manifest import Argument, Parameter, Usage
from gristmill.aot.request import compile_arguments
from gristmill.compile.executor import EXECUTOR, Binary, triton_target
from gristmill.core.target import Target, compile_target
from gristmill.errors import CompileError
from gristmill.measure.isolation import Child, ChildDied, ChildTimedOut, connect
from gristmill.measure.memory import GB
from gristmill.record import record
from gristmill.tuners.travel import unpack
from gristmill.tuning.compiler import Server

TASK = "task.json"
BINARIES = "kernels"
SUFFIXES = {"cuda": "cubin", "hip": "hsaco"}
SHARED = "shared"
REASON_CHARS = 4000
GRACE_S = 30.0
MOST_THREADS = 1024  # of a block, on every target
AHEAD = 16  # requests that wait at the server, so that no processor does

# The compile server's environment: no line numbers (they hold paths), and none of the switches that
# make Triton's compiler do something else.
ENVIRONMENT = {
    "TRITON_DISABLE_LINE_INFO": "1",
    "TRITON_INTERPRET": "0",
    "TRITON_DEBUG": "0",
    "TRITON_ALWAYS_COMPILE": "0",
    "TRITON_STORE_BINARY_ONLY": "0",
    "TRITON_KERNEL_DUMP": "0",
    "TRITON_KERNEL_OVERRIDE": "0",
    "TRITON_ENABLE_ASAN": "0",
    "TRITON_INSTRUMENTATION_MODE": "",
    "TRITON_OVERRIDE_ARCH": "",
    "PTXAS_OPTIONS": "",
    "DISABLE_PTXAS_OPT": "0",
    "MLIR_ENABLE_DUMP": "0",
    "USE_IR_LOC": "",
}


@record
class Answer:
    """What came of compiling one specialisation: metadata, or the reason why there is none."""

    status: str
    reason: str = ""
    data: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[arg-type] - a record is a dataclass

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Answer:
        return cls(data["status"], data.get("reason") or "", data.get("data"))


class Compiler:
    """Compiles specialisations of one kernel after another. Use as a context manager.

    Args:
        scratch: a folder with one of each kernel, which holds its task; binaries land in `kernels`
            beside them.
        jobs: processes that compile.
        timeout_s: seconds after which a compile is ended.
    """

    def __init__(self, scratch: Path, jobs: int, timeout_s: float) -> None:
        self._jobs, self._timeout_s = jobs, timeout_s
        cache = {"TRITON_CACHE_DIR": str(scratch / "cache")}  # nobody else's
        self._child = Child("gristmill.aot.compiler", {**ENVIRONMENT, **cache})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._child.stop()

    def compile(
        self,
        folder: Path,
        requests: Sequence[Mapping[str, Any]],
        told: Callable[[int, Answer], None],
    ) -> None:
        """Compile requests for the kernel in `folder`.

        Args:
            told: hears of each, by its index, as it ends.
        """
        waiting = dict(enumerate(requests))
        while waiting:
            alive, starts = self._child.alive, self._child.started
            try:
                self._ask(folder, waiting, told)
            except (ChildDied, ChildTimedOut) as error:
                self._child.stop()
                # Which of several took the server along is not known: the next server has one at a
                # time. One that does not start takes all along.
                known = list(waiting)[:1] if self._jobs == 1 else []
                began = alive or self._child.started > starts
                for index in known if began else list(waiting):
                    del waiting[index]
                    told(index, Answer("crash", f"the compile server was lost: {error}"))
                self._jobs = 1

    def _ask(
        self,
        folder: Path,
        waiting: dict[int, Mapping[str, Any]],
        told: Callable[[int, Answer], None],
    ) -> None:
        """Send what waits, a few ahead of the answers, and take each out as it ends."""
        base = {"folder": str(folder), "jobs": self._jobs, "timeout_s": self._timeout_s}
        base["growth_bytes"] = settings.current().growth_gb * GB
        unasked = iter(list(waiting.items()))
        for index, asked in itertools.islice(unasked, self._jobs + AHEAD):
            self._child.send({**base, "id": index, "request": asked})
        while waiting:
            answer = self._child.receive(self._timeout_s + GRACE_S)
            del waiting[answer["id"]]
            told(answer["id"], Answer.from_json(answer["outcome"]))
            for index, asked in itertools.islice(unasked, 1):
                self._child.send({**base, "id": index, "request": asked})


class SpecialisationServer(Server):
    """Compiles specialisations of the kernel in a request's folder."""

    _folder = ""
    _kernel: Any = None
    _lost = ""

    def warm(self, request: Mapping[str, Any]) -> None:
        """Read the kernel and hash Triton, once; every child begins with both."""
        if request["folder"] == self._folder:
            return
        self._folder = request["folder"]
        folder = Path(self._folder)
        task = json.loads((folder / TASK).read_text())
        try:
            self._kernel = unpack(task["function"], folder)
            _ = self._kernel.cache_key  # hashes the sources: once for all
        except Exception as error:  # noqa: BLE001 - a user's module may raise anything
            self._lost = f"the kernel cannot be read again: {type(error).__name__}: {error}"
        for arch in task["archs"]:
            with contextlib.suppress(Exception):  # its compiles will say why
                EXECUTOR.warm(compile_target(arch))
        share_stages(folder.parent / SHARED)

    def compile(self, request: Mapping[str, Any]) -> Answer:
        """What the compiler says of a specialisation."""
        self.warm(request)
        if self._lost:
            return Answer("crash", self._lost)
        folder = Path(request["folder"])
        try:
            # What Triton writes of a compile (0.2 MB for a GEMM) is not to pile up.
            with tempfile.TemporaryDirectory(dir=folder) as knobs.cache.dir:
                data = compile_one(self._kernel, request["request"], folder)
        except Exception as error:  # noqa: BLE001 - the compiler raises anything: its message
            text = str(error).strip() or type(error).__name__
            return Answer("compile_error", text[:REASON_CHARS])
        return Answer("ok", data=data)


def compile_one(kernel: Any, asked: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Compile one specialisation, check its ABI, keep its binary; what a `Variant` says of it."""
    target = compile_target(asked["arch"])
    parameters = [Parameter(**p) for p in asked["parameters"]]
    arguments = [Argument(**a) for a in asked["arguments"]]
    source = ASTSource(kernel, *compile_arguments(asked))
    compiled = triton.compile(source, target=triton_target(target), options=dict(asked["options"]))
    metadata: Any = compiled.metadata
    encoded = abi.descriptors(parameters, metadata)
    threads = target.warp_size * metadata.num_warps
    _check_runs(threads, metadata.shared, target)
    slots = abi.binary_slots(parameters, arguments, compiled.asm, bool(encoded))
    if getattr(metadata, "profile_scratch_size", 0):
        raise CompileError("the binary writes a profile; compile without instrumentation")
    suffix = SUFFIXES[target.vendor]
    code = compiled.asm[suffix]
    name = hashlib.sha256(code).hexdigest()
    _write(folder.parent / BINARIES / f"{name}.{suffix}", code)
    return {
        "binary": name,
        "symbol": metadata.name,
        "threads": threads,
        "cluster": metadata.num_ctas,
        "cooperative": bool(getattr(metadata, "launch_cooperative_grid", False)),
        "pdl": bool(getattr(metadata, "launch_pdl", False)),
        "scratch_bytes": getattr(metadata, "global_scratch_size", 0) or 0,
        "scratch_align": getattr(metadata, "global_scratch_align", 1) or 1,
        "slots": slots,
        "usage": usage(Binary(compiled, target), folder.parent / SHARED, name, len(code)),
        "descriptors": encoded,
        "tools": tools(target),
    }


def _check_runs(threads: int, shared_bytes: int, target: Target) -> None:
    """A binary that no device of the target can launch is a failure of the build, not of the
    load.

    Raises:
        CompileError: a block has more threads or more shared memory than there may be.
    """
    if threads > MOST_THREADS:
        raise CompileError(
            f"a block has {threads} threads, and {target.arch} takes {MOST_THREADS}; take fewer "
            "warps"
        )
    if shared_bytes > target.shared_memory_bytes:
        raise CompileError(
            f"a block needs {shared_bytes} bytes of shared memory, and {target.arch} has "
            f"{target.shared_memory_bytes}; take smaller blocks or fewer stages"
        )


def usage(binary: Binary, folder: Path, name: str, size: int) -> Usage:
    """What the compiler says of a binary; the disassembler is asked once for each code."""
    kept = folder / f"{name}.usage"
    if kept.exists():
        registers, spills = json.loads(kept.read_text())
    else:
        registers, spills = binary.registers, binary.spills
        _write(kept, json.dumps([registers, spills]).encode())
    return Usage(registers, spills, binary.shared_bytes, size)


def tools(target: Target) -> dict[str, str]:
    """The versions of what made a binary."""
    found = {"triton": triton.__version__}
    if target.vendor == "cuda":
        found["ptxas"] = get_ptxas(target.capability).version  # Triton ships two
    return found


def share_stages(folder: Path) -> None:
    """Let specialisations whose LLVM IR is the same share what follows from it.

    Alignment decides between instructions on the way to LLVM IR, and most patterns of it decide the
    same way: of 64 of a matmul's, six were left, and what comes after is half of a compile (100 of
    185 ms, sm_90, 2-core machine).
    """
    folder.mkdir(parents=True, exist_ok=True)

    def inspect(
        backend: Any = None,
        stages: dict[str, Any] | None = None,
        options: Any = None,
        language: Any = None,
        capability: Any = None,
    ) -> tuple[str, str] | None:
        del language, capability
        if stages is None:  # Triton 3.9 asks what the hook adds to its cache's key
            return "gristmill", "gristmill"
        text = f"{backend.hash()}{sorted(vars(options).items(), key=lambda kv: kv[0])}"
        names = list(stages)
        for name in names[names.index("llir") + 1 :]:
            stages[name] = _shared(stages[name], folder, f"{name}\0{text}\0")
        return None

    knobs.runtime.add_stages_inspection_hook = inspect  # type: ignore[assignment]


def _shared(
    stage: Callable[[Any, dict[str, Any]], Any], folder: Path, context: str
) -> Callable[[Any, dict[str, Any]], Any]:
    """A stage of the compiler that looks first whether its input was seen before."""

    def run(source: Any, metadata: dict[str, Any]) -> Any:
        if not isinstance(source, str):
            return stage(source, metadata)
        name = hashlib.sha256(f"{context}{source}".encode()).hexdigest()
        kept, text = folder / f"{name}.out", folder / f"{name}.json"
        if text.exists():
            said = json.loads(text.read_text())
            metadata.update(said["metadata"])
            return kept.read_text() if said["text"] else kept.read_bytes()
        before = dict(metadata)
        result = stage(source, metadata)
        new = {k: v for k, v in metadata.items() if k not in before or before[k] != v}
        data = result.encode() if isinstance(result, str) else result
        _write(kept, data)
        said = {"metadata": new, "text": isinstance(result, str)}
        _write(text, json.dumps(said).encode())
        return result

    return run


def _write(path: Path, data: bytes) -> None:
    """Write a file that others may read or write at once, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.rename(path)


if __name__ == "__main__":
    SpecialisationServer(connect()).run()
