"""Provenance: the versions under which a measurement was made."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import sys

import torch


@functools.lru_cache(maxsize=1)
def provenance() -> str:
    """The versions that a measured time depends on, as canonical JSON (starts no device)."""
    versions = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip or "",
        "driver": _driver(),
        "triton": triton_version(),
    }
    return json.dumps(versions, sort_keys=True, separators=(",", ":"))


def changed_since(kept: str) -> str:
    """What is other now than when something was measured: `"triton 3.5.1, here 3.6.0"`; empty where
    nothing is, or where it cannot be told."""
    try:
        then, now = json.loads(kept), json.loads(provenance())
    except ValueError:
        return ""
    if not isinstance(then, dict):
        return ""
    names = [name for name in sorted({*then, *now}) if then.get(name, "") != now.get(name, "")]
    return "; ".join(
        f"{name} {then.get(name) or 'none'}, here {now.get(name) or 'none'}" for name in names
    )


def library_version() -> str:
    """gristmill's own version. Its package is loaded before any module of it; an import of it here
    would be one of all that it offers."""
    return sys.modules[__name__.partition(".")[0]].__version__


def triton_version() -> str:
    """Triton's version, empty where it is not installed: as `importlib.metadata.version` says it,
    of which parsing the package's description as an e-mail is 0.3 of 0.45 ms."""
    try:
        package = importlib.metadata.distribution("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""
    for line in (package.read_text("METADATA") or "").splitlines():
        if line.startswith("Version: "):
            return line.removeprefix("Version: ").strip()
    return package.version


def _driver() -> str:
    version = getattr(torch._C, "_cuda_getDriverVersion", None)
    return str(version()) if version is not None else ""
