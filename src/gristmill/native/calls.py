"""The C module behind bound calls (`calls.c`): compiled once a user and Python, loaded, and trusted
only after its answers agree with torch's.

Where there is no compiler, no Python header, or a torch of another C interface, there is none, and
calls go their way in Python.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from gristmill import settings

SOURCES = ("calls.c", "launches.h", "modes.h", "tensors.h")
FLAGS = ("-std=c11", "-O2", "-shared", "-fPIC")
TIMEOUT_S = 60
_C: Any = torch._C
FAULTS = (ImportError, OSError, subprocess.SubprocessError, AttributeError, RuntimeError)
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
    except (
        ImportError,
        OSError,
        subprocess.SubprocessError,
        AttributeError,
        RuntimeError,
    ) as error:
        _reason = str(error)
        return None
    return module


def _built() -> Path:
    """The compiled module, made if it is not there."""
    folder = Path(__file__).parent
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    digest = hashlib.sha256(" ".join((*FLAGS, suffix)).encode())
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    name = f"calls-{digest.hexdigest()[:20]}{suffix}"
    kept = settings.current().cache_dir / "native"
    if (kept / name).exists():
        return kept / name
    try:
        kept.mkdir(parents=True, exist_ok=True)
        return _compile(folder / SOURCES[0], kept, name)
    except PermissionError:  # a folder that is only read: for this process alone
        return _compile(folder / SOURCES[0], Path(tempfile.mkdtemp(prefix="gristmill-")), name)


def _compile(source: Path, folder: Path, name: str) -> Path:
    import sysconfig  # 0.4 ms that a process with the module at hand need not spend

    compiler = settings.child_environment().get("CC", "").split() or [
        shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") or "cc"
    ]
    handle, draft = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    try:
        include = sysconfig.get_paths()["include"]
        command = [*compiler, *FLAGS, f"-I{include}", str(source), "-o", draft, "-ldl"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            raise ImportError(f"{compiler[0]} failed: {(lines or ['no message'])[0]}")
        Path(draft).replace(folder / name)  # whole, whoever else builds it
    finally:
        Path(draft).unlink(missing_ok=True)
    return folder / name


def _load(path: Path) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("gristmill.native._calls", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


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
