"""A kernel to be compiled ahead of time."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gristmill.aot.building import TIMEOUT_S, BuildReport, build
from gristmill.aot.specification import Specification


class Kernel(Specification):
    """A kernel with its specification; every method but `build` returns a new one.

    Args:
        fn: a `@triton.jit` function, also under `@triton.autotune` and `@triton.heuristics` (whose
            values the specification states).
        name: the C function's name (default: the kernel's).

    Raises:
        InvalidInputError: `fn` is no such function, or the name is none that C takes.
    """

    def build(
        self,
        out: str | os.PathLike[str],
        targets: str | Sequence[str],
        *,
        jobs: int | None = None,
        strict: bool = True,
        timeout_s: float = TIMEOUT_S,
        name: str | None = None,
    ) -> BuildReport:
        """Compile it for architectures and write an artifact: `aot.build` of this one kernel."""
        return build(out, self, targets, jobs=jobs, strict=strict, timeout_s=timeout_s, name=name)
