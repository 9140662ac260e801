"""Kernels broken on purpose: a suite that does not reject them proves nothing."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from dataclasses import replace
from pathlib import Path

from gristmill.core.implementation import Implementation

_serial = itertools.count()


def mutated(implementation: Implementation, old: str, new: str, folder: Path) -> Implementation:
    """A Triton implementation whose source has `new` for `old`, not registered; its file is written
    to `folder`.

    Raises:
        ValueError: `old` is not in the source, so the mutation would test nothing.
    """
    source = implementation.source.read_text()
    if old not in source:
        raise ValueError(
            f"{implementation.source} has no {old!r} to break; adapt the mutation to the kernel."
        )
    body, _, _ = source.replace(old, new).partition(f"\n{implementation.op.name} = register(")
    name = f"_mutant_{next(_serial)}"
    path = folder / f"{name}.py"
    path.write_text(body + "\n")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    assert implementation.launcher is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    launcher = getattr(module, implementation.launcher.__name__)
    return replace(implementation, source=path, module=name, launcher=launcher)
