"""The registry of ops and implementations; `load` is the one dynamic import in the library."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gristmill.core.implementation import Executor, Implementation, Kind
from gristmill.core.op import Op
from gristmill.core.plan import KERNEL, Plan
from gristmill.errors import RegistrationError, UnknownOpError, did_you_mean

ENTRY_POINTS = "gristmill.kernels"
T = TypeVar("T")


class PluginWarning(UserWarning):
    """A third party's kernels were left out."""


_ops: dict[str, Op] = {}
_implementations: dict[str, dict[str, Implementation]] = {}
_complete: set[str] = set()  # ops with every implementation imported
_lock = threading.RLock()


def declare(op: Op) -> Op:
    """Register an op's contract; returns it. Specs call this once, at import."""
    with _lock:
        if op.name in _ops:
            raise RegistrationError(f"the op {op.name!r} is declared twice.")
        _ops[op.name] = op
    return op


def register(op: Op, name: str, function: Callable[..., Any], **fields: Any) -> Implementation:
    """Register an implementation of `op` from the module that defines `function`; returns the
    callable implementation.

    `function` is the launcher of a Triton implementation, or with `kind="vendor"` the call itself,
    or with `kind="compiled"` what builds the call for a problem. Other keywords are fields of
    `Implementation`.
    """
    kind: Kind = fields.pop("kind", "triton")
    role = {"triton": "launcher", "vendor": "call", "compiled": "build"}[kind]
    module = fields.pop("module", function.__module__)
    file = sys.modules[module].__file__
    assert file is not None
    fields.setdefault("doc", (inspect.getdoc(sys.modules[module]) or "").strip())
    implementation = Implementation(
        op=op,
        name=name,
        kind=kind,
        source=Path(file),
        module=module,
        executor=executor,
        **{role: function},
        **fields,
    )
    with _lock:
        known = _implementations.setdefault(op.name, {})
        if name in known:
            raise RegistrationError(
                f"{implementation.id} is registered twice ({known[name].source} and {file})."
            )
        known[name] = implementation
    return implementation


def op_names() -> tuple[str, ...]:
    """The names of every op: ours by their spec files, third parties' by entry point."""
    import_module("gristmill.specs")
    _load_entry_points()
    specs = sys.modules["gristmill.specs"]
    ours = [m.name for m in pkgutil.iter_modules(specs.__path__) if not m.name.startswith("_")]
    return tuple(sorted({*ours, *_ops}))


def load(name: str) -> Op:
    """The op of this name. Its implementations are imported when they are asked for.

    Raises:
        UnknownOpError: no such op; the message suggests near names.
    """
    # No lock of ours is held while importing: Python's import locks order the threads, and a module
    # that another thread is importing takes ours to register.
    if name not in _ops:
        if name.isidentifier() and importlib.util.find_spec(f"gristmill.specs.{name}"):
            import_module(f"gristmill.specs.{name}")
        else:
            _load_entry_points()
    if name not in _ops:
        known = op_names()
        raise UnknownOpError(
            f"`op` is {name!r}; known ops are {', '.join(known)}.{did_you_mean(name, known)}"
        )
    return _ops[name]


def implementations(op: str) -> tuple[Implementation, ...]:
    """Every implementation of an op, by name: ours and third parties'."""
    load(op)
    if op not in _complete:
        if importlib.util.find_spec(f"gristmill.kernels.{op}"):
            package = import_module(f"gristmill.kernels.{op}")
            for module in pkgutil.iter_modules(package.__path__):
                import_module(f"{package.__name__}.{module.name}")
        _load_entry_points()
        _complete.add(op)
    return tuple(impl for _, impl in sorted(_implementations.get(op, {}).items()))


def implementation(op: str, name: str) -> Implementation:
    """One implementation of an op. Where a file of ours has its name, no other is imported: a
    process that has its plans pays for what they name (10 ms for every kernel and plug-in)."""
    load(op)
    with _lock:
        known = _implementations.setdefault(op, {})
    if name not in known and op not in _complete:
        home = f"gristmill.kernels.{op}"
        ours = name.isidentifier() and importlib.util.find_spec(home)
        if ours and importlib.util.find_spec(f"{home}.{name}"):
            import_module(f"{home}.{name}")
        if name not in known:
            implementations(op)
    if name not in known:
        raise UnknownOpError(
            f"`implementation` is {name!r}; `{op}` has "
            f"{', '.join(sorted(known))}.{did_you_mean(name, known)}"
        )
    return known[name]


def is_current(op: str, name: str, source_hash: str) -> bool:
    """Whether a stored row is about code that is here: the implementation, with its source as it
    is. A user's kernel only its own program knows: its rows count as current."""
    if op.startswith(KERNEL):
        return True
    try:
        return implementation(op, name).source_hash == source_hash
    except UnknownOpError:
        return False


def first_current(entries: Sequence[T], plan_of: Callable[[T], Plan]) -> T:
    """Of what is kept for one bucket, the best first, the first whose plan is of code that is here;
    where none is, the very first. A single one is not looked at: to do so imports its kernel."""
    if len(entries) > 1:
        for entry in entries:
            plan = plan_of(entry)
            if is_current(plan.op, plan.candidate.implementation, plan.source_hash):
                return entry
    return entries[0]


def executor() -> Executor:
    """The one executor (content reaches it only through here)."""
    return import_module("gristmill.compile.executor").EXECUTOR


def import_module(name: str) -> Any:
    return importlib.import_module(name)


_entry_points_loaded = False
_entry_points_thread: int | None = None


def _load_entry_points() -> None:
    """Import what third parties offer; what fails is left out, and said."""
    global _entry_points_loaded, _entry_points_thread
    if _entry_points_loaded or _entry_points_thread == threading.get_ident():
        return  # a plug-in may ask for an op while it is imported
    _entry_points_thread = threading.get_ident()
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # noqa: BLE001 - another package's import may raise anything
            package = point.dist.name if point.dist else point.value
            warnings.warn(
                f"the gristmill plug-in {point.name!r} of {package} does not load "
                f"({type(error).__name__}: {error}); its kernels are left out. Mend or uninstall "
                "it.",
                PluginWarning,
                stacklevel=2,
            )
    _entry_points_loaded = True  # at the end: another thread waits in Python's import locks
