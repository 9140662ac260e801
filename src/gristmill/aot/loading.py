"""Artifacts opened from Python, in processes that need no Triton and no torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from gristmill.aot.artifact import damaged_files, read_manifest
from gristmill.aot.manifest import MANIFEST_FILE, Manifest
from gristmill.aot.manifest_json import to_text
from gristmill.errors import ArtifactError, did_you_mean
from gristmill.native.building import built, loaded

SUFFIX = ".abi3.so"
FLAGS = ("-fvisibility=hidden", "-fno-lto", "-pthread")


class LoadedArtifact:
    """An artifact's kernels as functions, each an attribute, and an item, by its name.

    A function takes the kernel's arguments, then `num_warps=0, num_stages=0` (0: the tuned choice,
    or the first that was compiled), `grid_x` (left out where the specification has a grid),
    `grid_y=1, grid_z=1` and `stream` (left out: the current one of the tensors' device). Tensors
    are of torch, or anything else with `__dlpack__` or with `data_ptr()` and `dtype`, or
    (address, element type). It raises `TypeError` and `ValueError` for arguments, and `Error` (a
    RuntimeError, whose `status` is C's) for a call that cannot be served.

    Attributes:
        folder: the artifact's. `manifest`: what it has.
        Error: the class of the errors of calls.
        preload: `preload(device=-1)` loads all that a device may run, so that no later call loads:
            before a graph is captured. A number, `"cuda:1"` or a `torch.device`; -1 and `None`: the
            current one.
        unload: unloads everything. No call may be running, nor any kernel of this artifact.
    """

    def __init__(self, folder: Path, manifest: Manifest, module: Any) -> None:
        self.folder, self.manifest = folder, manifest
        self.Error: type[RuntimeError] = module.Error
        self.preload, self.unload = module.preload, module.unload
        names = [entry.name for entry in manifest.kernels]
        names += [f"{name}_tuned" for name in names if hasattr(module, f"{name}_tuned")]
        self._kernels = {name: getattr(module, name) for name in names}
        self.__dict__.update({n: f for n, f in self._kernels.items() if n not in self.__dict__})

    def __getitem__(self, name: str) -> Any:
        if name not in self._kernels:
            raise KeyError(self._missing(name))
        return self._kernels[name]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(self._missing(name))

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._kernels})

    def __repr__(self) -> str:
        return f"<artifact {self.manifest.name!r} in {self.folder}: {', '.join(self._kernels)}>"

    def _missing(self, name: str) -> str:
        kernels = self.__dict__.get("_kernels", {})
        near = did_you_mean(name, kernels)
        return f"the artifact has no kernel {name!r}; it has {', '.join(kernels)}.{near}"


def digest_of(manifest: Manifest) -> str:
    """What a built module and its artifact must agree in: all of the manifest but its files."""
    bare = replace(manifest, files={})  # type: ignore[type-var] - a record is a dataclass
    return hashlib.sha256(to_text(bare).encode()).hexdigest()


def module_source(manifest: Manifest) -> str:
    """The source of an artifact's Python module, which has `digest_of`, in its folder."""
    return f"{manifest.name}_module.c"


def load(path: str | os.PathLike[str]) -> LoadedArtifact:
    """Open an artifact, to call its kernels from Python. Neither Triton nor torch is imported.

    The artifact's Python module is `<name>.abi3.so` in its folder or in `build` there, where it
    has been built; else it is compiled, once a user, with the C compiler (`CC`, or `cc`) and this
    Python's headers, into the folder `native` of gristmill's cache.

    Args:
        path: the artifact's folder.

    Raises:
        ArtifactError: the artifact is missing, damaged or of another schema version; a module
            there is of another build; or there is none, and it does not compile, or cannot be
            written or loaded.
    """
    manifest = read_manifest(path)
    folder = Path(path).resolve()
    folder = folder.parent if folder.name == MANIFEST_FILE else folder
    if not manifest.name.isidentifier():  # it names files and a function
        raise ArtifactError(
            f"the manifest in {folder} is damaged: its name is {manifest.name!r}. Build the "
            "artifact again."
        )
    name = f"{manifest.name}{SUFFIX}"
    there = [file for file in (folder / name, folder / "build" / name) if file.exists()]
    module = _built(there[0], folder, manifest) if there else _own(folder, manifest)
    return LoadedArtifact(folder, manifest, module)


def _built(file: Path, folder: Path, manifest: Manifest) -> Any:
    """The module that somebody built in an artifact's folder."""
    try:
        module = loaded(manifest.name, file)
    except ImportError as error:
        raise ArtifactError(
            f"{file} is no Python module of this artifact ({error}). Remove it, and load again."
        ) from error
    if getattr(module, "__digest__", None) != digest_of(manifest):
        raise ArtifactError(
            f"{file} was made from another build of the artifact in {folder}. Remove it, or build "
            "it again."
        )
    return module


def _own(folder: Path, manifest: Manifest) -> Any:
    """The module that is compiled here, where it is not there yet."""
    file = _compiled(folder, manifest)
    try:
        module = loaded(manifest.name, file)
    except ImportError:  # damaged since: once more
        with contextlib.suppress(OSError):
            file.unlink()
        file = _compiled(folder, manifest)
        try:
            module = loaded(manifest.name, file)
        except ImportError as error:
            raise ArtifactError(
                f"the Python module of {folder} was compiled to {file}, and cannot be loaded from "
                f"there: {error}. Where programs may not be run from that folder, set "
                "GRISTMILL_CACHE_DIR to one where they may."
            ) from error
    if getattr(module, "__digest__", None) != digest_of(manifest):
        raise ArtifactError(
            f"the manifest in {folder} is not the one that the artifact's C files were made with: "
            "it was changed. Build the artifact again."
        )
    return module


def _compiled(folder: Path, manifest: Manifest) -> Path:
    source = module_source(manifest)
    if source not in manifest.files:
        raise ArtifactError(
            f"the artifact in {folder} has no Python module's source ({source}). Build it again, "
            "with this gristmill."
        )
    told = "".join(f"{name} {digest}\n" for name, digest in sorted(manifest.files.items()))
    damaged = damaged_files(folder, manifest)
    if damaged:
        raise ArtifactError(
            f"the artifact in {folder} is damaged: {damaged[0]} is missing or was changed. Build "
            "it again."
        )
    flags = (*FLAGS, f"-I{folder}")
    try:
        return built(folder / source, manifest.name, told.encode(), flags=flags, suffix=SUFFIX)
    except ImportError as error:
        raise ArtifactError(
            f"the Python module of {folder} does not compile: {error}. Install a C compiler and "
            "Python's headers, or build it elsewhere (docs/aot-python.md)."
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"the Python module of {folder} cannot be written: {error}. Set GRISTMILL_CACHE_DIR to "
            "a folder of yours that can be written to."
        ) from error
