"""Ahead of time: `@triton.jit` kernels as C artifacts that need neither Python nor Triton.

What reads an artifact imports no Triton; `Kernel` and `build` do, when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gristmill.aot.artifact import damaged_files, read_manifest
    from gristmill.aot.building import BuildReport, Failure, build
    from gristmill.aot.expand import MissingFallbackWarning, View
    from gristmill.aot.kernel import Kernel
    from gristmill.aot.loading import LoadedArtifact, load
    from gristmill.aot.manifest import Manifest
    from gristmill.aot.op_plans import OpKernels, build_ops, op_kernels
    from gristmill.aot.row_choice import row_of
    from gristmill.aot.selecting import select
    from gristmill.aot.spec import Bool, Descriptor, Float, Int, Ptr, Type
    from gristmill.aot.tracing import trace
    from gristmill.aot.tuned import UnusedChoiceWarning
    from gristmill.aot.wheel import wheel

_HOMES = {
    "artifact": ("damaged_files", "read_manifest"),
    "building": ("BuildReport", "Failure", "build"),
    "expand": ("MissingFallbackWarning", "View"),
    "kernel": ("Kernel",),
    "loading": ("LoadedArtifact", "load"),
    "manifest": ("Manifest",),
    "op_plans": ("OpKernels", "build_ops", "op_kernels"),
    "row_choice": ("row_of",),
    "selecting": ("select",),
    "spec": ("Bool", "Descriptor", "Float", "Int", "Ptr", "Type"),
    "tracing": ("trace",),
    "tuned": ("UnusedChoiceWarning",),
    "wheel": ("wheel",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Bool",
    "BuildReport",
    "Descriptor",
    "Failure",
    "Float",
    "Int",
    "Kernel",
    "LoadedArtifact",
    "Manifest",
    "MissingFallbackWarning",
    "OpKernels",
    "Ptr",
    "Type",
    "UnusedChoiceWarning",
    "View",
    "build",
    "build_ops",
    "damaged_files",
    "load",
    "op_kernels",
    "read_manifest",
    "row_of",
    "select",
    "trace",
    "wheel",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
