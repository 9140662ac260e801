"""What identifies an implementation in the store: the files that decide what it computes."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from gristmill.core.op import Op

# What runs implementations says nothing about one of them; its version is in a plan's provenance.
MACHINERY = ("gristmill.core", "gristmill.errors", "gristmill.record", "gristmill.settings")
# Its face names all that it offers, for type checkers: what of that is loaded differs by process.
FACE = "gristmill"
_IMPORT = re.compile(
    rb"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import|import[ \t]+([.\w]+))", re.MULTILINE
)


def source_hash(op: Op, source: Path, module: str) -> str:
    """A hash of the schema, the implementation's file, the op's spec, and what these import.

    An import counts where it is of the importing module's own top-level package, and neither
    `MACHINERY` nor our own face; what is imported is followed in turn.
    """
    functions = (op.reference, op.magnitude, op.inputs, op.bounds)
    names = {getattr(f, "__module__", None) for f in functions} | {module}
    found: dict[str, Path] = {}
    pending = [n for n in names if n and n.partition(".")[0] != "torch"]
    while pending:
        name = pending.pop()
        file = getattr(sys.modules.get(name), "__file__", None)
        if name in found or file is None:
            continue
        found[name] = Path(file)
        pending += _imported(name, file)
    digest = hashlib.sha256(op.schema.encode())
    digest.update(source.read_bytes())
    for name in sorted(found):
        digest.update(f"\0{name}\0".encode())
        digest.update(found[name].read_bytes())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _imported(name: str, file: str) -> tuple[str, ...]:
    """The modules of its own top-level package that a loaded module imports."""
    return tuple(
        n
        for n in sorted({*_written(name, file), *_bound(name)})
        if n != name
        and n != FACE
        and n.partition(".")[0] == name.partition(".")[0]
        and not any(n == m or n.startswith(m + ".") for m in MACHINERY)
    )


def _written(name: str, file: str) -> Iterator[str]:
    """The modules that its import statements name (which a constant's value does not tell)."""
    package = getattr(sys.modules[name], "__package__", None) or name
    for match in _IMPORT.finditer(Path(file).read_bytes()):
        written = (match[1] or match[2]).decode()
        if written.startswith("."):
            yield importlib.util.resolve_name(written, package)
        else:
            yield written


def _bound(name: str) -> Iterator[str]:
    """The modules that its names stand for or come from (`from package import module`)."""
    module = sys.modules[name]
    is_package = hasattr(module, "__path__")  # every submodule is a name of it, whoever imports it
    for value in list(vars(module).values()):
        if is_package and isinstance(value, ModuleType):
            continue
        known = getattr(value, "__module__", None) or getattr(value, "__name__", None)
        if isinstance(known, str):
            yield known
