"""C extensions of Python, compiled once a user, Python and source."""

from __future__ import annotations

import atexit
import errno
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gristmill import settings

FLAGS = ("-std=c11", "-O2", "-shared", "-fPIC")
TIMEOUT_S = 60
FULL = os.strerror(errno.ENOSPC)


def built(
    source: Path, name: str, told: bytes, *, flags: Sequence[str] = (), suffix: str = ""
) -> Path:
    """A compiled module, made if it is not there.

    Args:
        source: the C file. `flags`: beside `FLAGS`.
        name: the module's. `told`: all that it is made from.
        suffix: of its file (default: that of this Python's own interface).

    Raises:
        ImportError: there is no compiler, or it fails. OSError: there is nowhere to write.
    """
    suffix = suffix or importlib.machinery.EXTENSION_SUFFIXES[0]
    digest = hashlib.sha256(" ".join((*FLAGS, *flags, suffix)).encode() + b"\0" + told)
    file = f"{name}-{digest.hexdigest()[:20]}{suffix}"
    kept = settings.current().cache_dir / "native"
    try:
        if not (kept / file).exists():
            kept.mkdir(mode=0o700, parents=True, exist_ok=True)
            _compile(source, flags, kept, file)
        if _is_ours(kept) and _is_ours(kept / file):
            return kept / file
        why = "others may write there"
    except OSError as error:  # a folder that is only read, a full disk
        why = str(error)
    try:
        alone = Path(tempfile.mkdtemp(prefix="gristmill-"))  # for this process
        atexit.register(shutil.rmtree, alone, ignore_errors=True)
        return _compile(source, flags, alone, file)
    except OSError as error:
        raise OSError(f"not to {kept} ({why}), nor to a temporary folder ({error})") from error


def _is_ours(path: Path) -> bool:
    """Whether nobody but this user, or root, can have put code there."""
    found = path.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022


def _compile(source: Path, flags: Sequence[str], folder: Path, name: str) -> Path:
    import sysconfig  # 0.4 ms that a process with the module at hand need not spend

    compiler = settings.child_environment().get("CC", "").split() or [
        shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") or "cc"
    ]
    handle, draft = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    try:
        include = sysconfig.get_paths()["include"]
        command = [*compiler, *FLAGS, *flags, f"-I{include}", str(source), "-o", draft, "-ldl"]
        told = _output(command)
        if told is not None:
            lines = [line for line in told.splitlines() if "error" in line or FULL in line]
            if any(FULL in line for line in lines):
                raise OSError(errno.ENOSPC, FULL, str(folder))
            raise ImportError(f"{compiler[0]} failed: {(lines or ['no message'])[0]}")
        Path(draft).chmod(0o700)
        Path(draft).replace(folder / name)  # whole, whoever else builds it
    finally:
        Path(draft).unlink(missing_ok=True)
    return folder / name


def _output(command: Sequence[str]) -> str | None:
    """What a compiler that fails says; `None` where it does not fail."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except OSError as error:
        raise ImportError(f"{command[0]} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise ImportError(f"{command[0]} did not end within {TIMEOUT_S} s") from error
    return done.stderr if done.returncode else None


def loaded(name: str, path: Path) -> Any:
    """A module from its file, not entered into `sys.modules`.

    Raises:
        ImportError: it is no such module.
    """
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
