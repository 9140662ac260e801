"""What a worker says of where it runs: what a driver on another machine has to know."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from gristmill import settings
from gristmill.core.provenance import library_version, provenance, triton_version
from gristmill.core.registry import implementations
from gristmill.core.target import device_target
from gristmill.errors import UnknownOpError
from gristmill.measure.lease import device_identity


def describe(device: torch.device, ops: Sequence[str]) -> dict[str, Any]:
    """The device's target and name among processes, versions, and the sources of ops as hashes by
    implementation."""
    return {
        "target": asdict(device_target(device)),
        "identity": device_identity(device),
        "host": platform.node(),
        "compile_jobs": settings.current().compile_jobs,
        "provenance": provenance(),
        "versions": versions(),
        "sources": {op: _sources(op) for op in ops},
    }


def versions() -> dict[str, str]:
    """What has to be the same on all machines of a fleet. (The driver, and what torch was built
    for, may differ: they are in the provenance of what is measured.)"""
    found = {
        "gristmill": library_version(),
        "torch": torch.__version__,
        "triton": triton_version(),
    }
    return {name: version.partition("+")[0] for name, version in found.items()}


def unlike(there: Mapping[str, Any], ops: Sequence[str]) -> str:
    """Why a worker that describes itself so cannot work for this process, or an empty string."""
    here = versions()
    found = [
        f"{name} {there['versions'].get(name) or 'none'}, here {here[name] or 'none'}"
        for name in here
        if there["versions"].get(name) != here[name]
    ]
    if not found:  # of other versions the sources are others too
        found = [
            f"the kernels of `{op}` are others there than here"
            for op in ops
            if there["sources"].get(op) != _sources(op)
        ]
    return "; ".join(found)


def _sources(op: str) -> dict[str, str]:
    try:
        return {impl.name: impl.source_hash for impl in implementations(op)}
    except UnknownOpError:
        return {}
