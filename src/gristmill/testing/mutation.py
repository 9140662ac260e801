"""Kernels broken on purpose: a suite that does not reject them proves nothing."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from gristmill.core.implementation import Implementation

_serial = itertools.count()


def mutated(implementation: Implementation, old: str, new: str, folder: Path) -> Implementation:
    """A Triton implementation whose source has `new` for `old`, not registered; its file is written
    to `folder`. Where a device function of ours has `old`, that is broken, for it alone.

    Raises:
        ValueError: `old` is not in the source, so the mutation would test nothing.
    """
    source = implementation.source.read_text()
    if old not in source:
        source = _with_broken_import(source, old, new, folder)
        if source is None:
            raise ValueError(
                f"{implementation.source} has no {old!r} to break; adapt the mutation to the "
                "kernel."
            )
    body, _, _ = source.replace(old, new).partition(f"\n{implementation.op.name} = register(")
    assert implementation.launcher is not None
    module = _module(body, folder)
    launcher = getattr(module, implementation.launcher.__name__)
    path = Path(str(module.__file__))
    return replace(implementation, source=path, module=module.__name__, launcher=launcher)


def _with_broken_import(source: str, old: str, new: str, folder: Path) -> str | None:
    """The source importing device functions of which all that have `old`, themselves or in what
    they import, have `new` for it; `None` where none has."""
    made = source
    for shared in re.findall(r"^from (\S+\.kernels\.device\.\w+) import", source, re.MULTILINE):
        text = Path(str(sys.modules[shared].__file__)).read_text()
        mutant = text.replace(old, new)
        mutant = _with_broken_import(mutant, old, new, folder) or mutant
        if mutant != text:
            broken = _module(mutant, folder)
            made = made.replace(f"from {shared} import", f"from {broken.__name__} import")
    return None if made == source else made


def _module(source: str, folder: Path) -> ModuleType:
    """The source as a module of its own, in a file: Triton reads it."""
    name = f"_mutant_{next(_serial)}"
    path = folder / f"{name}.py"
    path.write_text(source + "\n")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
