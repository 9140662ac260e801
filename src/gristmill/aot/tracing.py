"""What a running program launches, as specifications that cover it.

Triton calls a kernel's hooks before each launch, with its arguments (`add_pre_run_hook`); kernels
that come to be while a trace runs are met when they are compiled (`jit_post_compile_hook`).
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

from triton import knobs
from typing_extensions import Self

from gristmill.aot.kernel import Kernel
from gristmill.aot.recorded import Call, call_of, call_of_compile, specifications
from gristmill.aot.signature import jitted
from gristmill.errors import InvalidInputError
from gristmill.tuners.travel import is_jitted


class trace:  # noqa: N801 - used as `with aot.trace() as t:`, like a function
    """Record which specialisations of kernels a program uses.

        with aot.trace(my_kernel) as t:
            serve(requests)
        t.kernels()[0].build("out/mine", targets=["sm_90"])

    Launches of every thread count, and `kernel.warmup(...)` does as well. A launch that was bound
    before (by a bound operator of gristmill's, in a replayed CUDA graph) does not: Triton does not
    hear of it. A launch costs some microseconds more.

    Args:
        kernels: `@triton.jit` functions, decorated or not; none: all that there are.

    Raises:
        InvalidInputError: one is no such function.
    """

    def __init__(self, *kernels: Any) -> None:
        self._named = tuple(map(jitted, kernels))
        self._lock = threading.Lock()
        self._calls: dict[Any, dict[Call, int]] = {}
        self._hooks: list[tuple[Any, Callable[..., None]]] = []
        self._before: Any = None

    def __enter__(self) -> Self:
        if self._hooks or self._before is not None:
            raise InvalidInputError("the trace runs already; it ends with its block. Make another.")
        found = self._named or [o for o in gc.get_objects() if is_jitted(o)]
        for kernel in found:
            self._hook(kernel)
        if not self._named:
            self._before = knobs.runtime.jit_post_compile_hook
            knobs.runtime.jit_post_compile_hook = self._compiled  # type: ignore[assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._named:
            knobs.runtime.jit_post_compile_hook = self._before
            self._before = None
        with self._lock:
            hooks, self._hooks = self._hooks, []
        for kernel, hook in hooks:
            # Another list, not a shorter one: a launch may walk over the old one.
            kernel.pre_run_hooks = [h for h in kernel.pre_run_hooks if h is not hook]

    @property
    def launches(self) -> int:
        """How many launches were seen."""
        with self._lock:
            return sum(count for calls in self._calls.values() for count in calls.values())

    def kernels(self) -> tuple[Kernel, ...]:
        """Specifications that cover what was launched: the classes of arguments, constexprs and
        options that were met together, and for each of these a variant that asks nothing of its
        arguments. A kernel that was called with arguments of several kinds has several."""
        with self._lock:
            seen = {kernel: tuple(calls) for kernel, calls in self._calls.items()}
        return specifications(seen)

    def _hook(self, kernel: Any) -> None:
        def launched(*args: Any, **kwargs: Any) -> None:
            self._note(kernel, lambda: call_of(kernel, args, kwargs))

        with self._lock:
            self._hooks.append((kernel, launched))
        kernel.add_pre_run_hook(launched)

    def _compiled(self, **told: Any) -> Any:
        """A compile has ended: of a kernel that is new, its first launch goes on without hooks."""
        fn = getattr(told.get("fn"), "jit_function", None)
        with self._lock:
            known = any(kernel is fn for kernel, _ in self._hooks)
        if fn is not None and not known:
            self._hook(fn)
            self._note(fn, lambda: call_of_compile(fn, told["compile"]))
        return self._before(**told) if self._before is not None else None

    def _note(self, kernel: Any, made: Callable[[], Call]) -> None:
        """Remember a call. The program goes on whatever it passes: the launch itself will say."""
        try:
            call = made()
        except Exception as error:  # noqa: BLE001 - see above
            warnings.warn(
                f"a launch of {kernel.fn.__name__} is not in the trace: {error}",
                RuntimeWarning,
                stacklevel=4,
            )
            return
        with self._lock:
            calls = self._calls.setdefault(kernel, {})
            calls[call] = calls.get(call, 0) + 1
