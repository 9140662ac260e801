"""The one executor: runs launches, binds them for the hot path, and compiles them for any target
without a GPU."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import create_function_from_signature

from gristmill.compile.hot import descriptor
from gristmill.core.launch import Launch, TensorMap
from gristmill.core.target import Target
from gristmill.errors import CompileError
from gristmill.record import record


@record(eq=False, slots=False)
class Binary:
    """A kernel compiled for a target, and what the compiler says of it."""

    kernel: CompiledKernel
    target: Target

    @property
    def shared_bytes(self) -> int:
        return self.kernel.metadata.shared

    @property
    def num_warps(self) -> int:
        """Warps per program of the binary (a warp-specialised kernel has more than were asked
        for)."""
        return self.kernel.metadata.num_warps

    @cached_property
    def registers(self) -> int | None:
        """Registers per thread; `None` where the target has no disassembler at hand."""
        return self._usage[0]

    @cached_property
    def spills(self) -> int | None:
        """Bytes of local memory per thread (spills and register arrays); `None` as for
        `registers`."""
        return self._usage[1]

    @cached_property
    def sass(self) -> str:
        """The machine code, disassembled (CUDA targets)."""
        return self.kernel.asm["sass"]

    @cached_property
    def _usage(self) -> tuple[int | None, int | None]:
        if self.target.vendor != "cuda":
            return _amdgcn_usage(self.kernel.asm.get("amdgcn", ""))
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder, "kernel.cubin")
            cubin.write_bytes(self.kernel.asm["cubin"])
            try:
                command = [knobs.nvidia.cuobjdump.path, "-res-usage", cubin]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            except (OSError, RuntimeError, subprocess.SubprocessError):
                return None, None  # no such tool here: known once the kernel is loaded
        usage = dict(
            part.split(":", 1) for part in done.stdout.split() if ":" in part and part[0].isupper()
        )
        return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def _amdgcn_usage(text: str) -> tuple[int | None, int | None]:
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(":")
        if name in (".vgpr_count", ".private_segment_fixed_size"):
            found[name] = int(value)
    return found.get(".vgpr_count"), found.get(".private_segment_fixed_size")


def triton_target(target: Target) -> GPUTarget:
    """Our target in Triton's terms."""
    arch = target.capability if target.vendor == "cuda" else target.arch
    return GPUTarget(target.vendor, arch, target.warp_size)


def _native(arg: Any) -> Any:
    """An argument as Triton's JIT takes it."""
    if isinstance(arg, TensorMap):
        return descriptor(arg.tensor, arg.shape, arg.strides, arg.block)
    return arg


def _keywords(launch: Launch) -> dict[str, Any]:
    """Constexprs and options as the JIT takes them; every way to a binary goes through here, so
    that they meet in Triton's cache."""
    return {**STATED_OPTIONS, **launch.constexprs, **launch.options}


def _is_interpreted(launch: Launch) -> bool:
    # By name: importing the interpreter takes 4 ms.
    return type(launch.kernel).__name__ == "InterpretedFunction"


def _is_empty(launch: Launch) -> bool:
    return any(n == 0 for n in launch.grid)


# The default changes in Triton 3.10, and 3.9 warns where it is not said.
STATED_OPTIONS: Mapping[str, Any] = {"enable_fp_fusion": True}

# What the JIT adds to the options of a launch, by version; without it the hashes would differ.
JIT_KNOBS = ("instrumentation_mode", "fpsan_homomorphic_casts")


class Executor:
    """Runs, binds and compiles `Launch` values."""

    def run(self, launches: Sequence[Launch]) -> None:
        """Launch on the current stream of the device that the tensors are on."""
        for launch in launches:
            if _is_empty(launch):
                continue
            with torch.cuda.device_of(launch.tensors()[0]):
                launch.kernel[launch.grid](*map(_native, launch.args), **_keywords(launch))

    def warm(self, target: Target) -> None:
        """Do now what the first compile of a process does for all of them: hash Triton and its
        tools, import what its JIT imports late. For processes that fork their compilers: 0.3 s of
        the 0.45 that a GEMM takes (2-core machine)."""
        make_backend(triton_target(target)).hash()
        with contextlib.suppress(ImportError):
            from triton.experimental.gluon import nvidia  # noqa: F401 (what the JIT imports late)
        key = getattr(triton.runtime.cache, "triton_key", None)
        if key is not None:
            key()

    def compile(self, launch: Launch, target: Target) -> Binary:
        """The binary that running `launch` on `target` would use, compiled here; meta tensors will
        do, a GPU need not be.

        Raises:
            CompileError: with the compiler's message.
        """
        backend = make_backend(triton_target(target))
        kernel = launch.kernel
        try:
            binder = create_function_from_signature(kernel.signature, kernel.params, backend)
            kwargs = {**_keywords(launch), "debug": kernel.debug or knobs.runtime.debug}
            for name in JIT_KNOBS:
                if hasattr(knobs.compilation, name):
                    kwargs[name] = getattr(knobs.compilation, name)
            arguments, specialization, options = binder(*map(_native, launch.args), **kwargs)
            options, signature, constexprs, attrs = kernel._pack_args(
                backend, kwargs, arguments, specialization, options
            )
            source = ASTSource(kernel, signature, constexprs, attrs)
            return Binary(
                triton.compile(source, target=triton_target(target), options=options.__dict__),
                target,
            )
        except CompileError:
            raise
        except Exception as error:  # the compiler raises anything: its message is the reason
            text = str(error).strip() or type(error).__name__
            raise CompileError(
                f"{kernel.__name__} does not compile for {target.arch}: {text}"
            ) from error

    def resources(self, launches: Sequence[Launch]) -> tuple[int | None, int | None, int | None]:
        """Registers, spilled words per thread and shared bytes of the heaviest kernel, once it has
        run on this device."""
        found = []
        for launch in launches:
            if _is_interpreted(launch) or _is_empty(launch):
                continue
            kernel = self.loaded(launch)
            found.append((kernel.n_regs, kernel.n_spills, kernel.metadata.shared))
        return max(found, default=(None, None, None))

    def loaded(self, launch: Launch) -> CompiledKernel:
        """The loaded kernel of a launch for the current device (compiled, if it is new to this
        process)."""
        native = tuple(map(_native, launch.args))
        kernel = launch.kernel.warmup(*native, grid=launch.grid, **_keywords(launch))
        kernel._init_handles()
        return kernel

    def load(
        self, launches: Sequence[Launch], device: torch.device
    ) -> list[tuple[Launch, CompiledKernel]]:
        """Launches with their kernels, loaded on this device. Empty where one of them cannot be
        bound: the interpreter runs launches one by one."""
        if any(map(_is_interpreted, launches)):
            return []
        with torch.cuda.device(device):
            return [(launch, self.loaded(launch)) for launch in launches]


EXECUTOR = Executor()
