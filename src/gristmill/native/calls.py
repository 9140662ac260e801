"""The C module behind bound calls (`calls.c`): compiled once a user and Python, loaded, and trusted
only after its answers agree with torch's.

Where there is no compiler, no Python header, or a torch of another C interface, there is none, and
calls go their way in Python.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from gristmill import settings
from gristmill.native.building import built, loaded

SOURCES = ("calls.c", "cuda_types.h", "exchange.h", "launches.h", "modes.h", "tensors.h")
_C: Any = torch._C
FAULTS = (ImportError, OSError, AttributeError, RuntimeError)
# Dispatch keys that are included where something watches or rewrites calls, and that are excluded
# where nothing does.
WATCHING = (
    "Python", "PythonTLSSnapshot", "PythonDispatcher", "FuncTorchDynamicLayerFrontMode",
    "FuncTorchDynamicLayerBackMode", "Functionalize", "Tracer",
)  # fmt: skip
AUTOCAST = ("AutocastCPU", "AutocastCUDA")

_reason = ""


def why_not() -> str:
    """Why this process has no such module, after it was asked for; empty where it has."""
    return _reason


@functools.cache
def calls() -> Any:
    """The module, or `None`."""
    global _reason
    try:
        if not settings.current().native:
            raise ImportError("GRISTMILL_NATIVE is 0")
        module = _load(_built())
        _set_up(module)
    except FAULTS as error:
        _reason = str(error)
        return None
    return module


def _built() -> Path:
    """The compiled module, made if it is not there."""
    folder = Path(__file__).parent
    told = b"".join((folder / name).read_bytes() for name in SOURCES)
    return built(folder / SOURCES[0], "calls", told)


def _load(path: Path) -> Any:
    return loaded("gristmill.native._calls", path)


def _set_up(module: Any) -> None:
    base = _C.TensorBase
    module.set_up(
        _exchange(),
        torch.Tensor,
        torch.nn.Parameter,
        base.is_neg,
        base.__dict__["requires_grad"],
    )
    excluded = 0
    for name in AUTOCAST:
        excluded |= _keys(name)
    module.set_modes("libc10.so", "libtorch_cpu.so", tuple(map(_keys, WATCHING)), excluded)
    if not _agrees(module):
        raise ImportError("torch keeps its modes elsewhere in this version")


def _exchange() -> Any:
    return torch.Tensor.__dlpack_c_exchange_api__  # pyright: ignore[reportAttributeAccessIssue]


def _keys(name: str) -> int:
    return _C.DispatchKeySet(_C._dispatch_key_parse(name)).raw_repr()


def _agrees(module: Any) -> bool:
    """Whether the module sees modes and gradients come and go: what it reads has no public face."""
    grad = torch.is_grad_enabled()
    seen = [module.modes()[1] == grad]
    with torch.set_grad_enabled(not grad):
        seen.append(module.modes()[1] != grad)
    for name in WATCHING:
        with _C._IncludeDispatchKeyGuard(_C._dispatch_key_parse(name)):
            seen.append(not module.modes()[0])
    for device in ("cpu", "cuda"):
        before = torch.is_autocast_enabled(device)
        torch.set_autocast_enabled(device, True)
        try:
            seen.append(not module.modes()[0])
        finally:
            torch.set_autocast_enabled(device, before)
    with _C._EnableTorchFunction(), _FunctionMode():
        seen.append(not module.modes()[0])
    return all(seen)


class _FunctionMode(torch.overrides.TorchFunctionMode):
    pass
