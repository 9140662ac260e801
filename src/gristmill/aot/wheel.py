"""Artifacts with operators as a project that `pip` installs: `torch.ops.<namespace>.<operator>`
with neither Triton nor gristmill."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from gristmill.aot import op_c
from gristmill.aot.artifact import damaged_files, read_manifest
from gristmill.aot.c_artifact import RUNTIME, templates, version_of
from gristmill.aot.c_names import identifier
from gristmill.aot.c_tables import architectures
from gristmill.aot.manifest import MANIFEST_FILE, Manifest
from gristmill.aot.op_plans import OpKernels, build_ops
from gristmill.aot.wheel_ops import WheelOp, kernel_op, wheel_op
from gristmill.aot.writing import check_place
from gristmill.core.op import Op
from gristmill.errors import ArtifactError, InvalidInputError
from gristmill.native import runtime

TORCH = "2.11"  # the oldest that the projects are for
HEADERS = (*op_c.HEADERS, "torch_op.h")
FILES = {
    "pyproject.toml": "pyproject.toml",
    "CMakeLists.txt": "CMakeLists.txt",
    "README.md": "README.md",
    "csrc/torch_ops.cpp": "torch_ops.cpp",
    "python/{name}/__init__.py": "init.py",
    "python/{name}/_shapes.py": "shapes.py",
}


def wheel(
    sources: Any,
    out: str | os.PathLike[str],
    *,
    name: str,
    namespace: str | None = None,
    version: str = "0.1.0",
    targets: str | Sequence[str] = (),
    **build: Any,
) -> Path:
    """Write a project that installs operators as `torch.ops.<namespace>.<operator>`.

    `pip install <out>` builds it with a C++ compiler, CMake and torch, without a GPU, Triton or
    gristmill; what is built runs with torch 2.11 and later (its stable interface) and Python 3.10
    and later. Operators have CUDA kernels, a CPU kernel that says where they run, and shapes for
    `torch.compile`; they record no gradients.

    Args:
        sources: artifacts' folders, or operators of the library (their names, or what `op_kernels`
            made), or several of these. Of an artifact, a kernel that none of its operators launches
            is an operator by itself: `kernel(*its arguments, num_warps=0, num_stages=0,
            grid_x=<the specification's>, grid_y=1, grid_z=1)`, which may write to every tensor.
        out: the project's folder, new or empty.
        name: the project's and the package's.
        namespace: in `torch.ops` (default: the name).
        version: the project's.
        targets: architectures, where operators are among the sources.
        build: for those, further arguments of `build_ops`.

    Returns:
        The project's folder.

    Raises:
        InvalidInputError: a name is none, or operators are given without targets.
        ArtifactError: an artifact is damaged, or has what torch's stable interface does not take;
            or the folder cannot be written to.
        CompileError: as of `build_ops`.
    """
    namespace = name if namespace is None else namespace
    _check_names(name, namespace, version)
    place = check_place(out)
    if place.exists() and any(place.iterdir()):
        raise ArtifactError(f"{place} is not empty. Name a new folder, or empty it.")
    folders, ops = _sorted(sources)
    with tempfile.TemporaryDirectory(prefix="gristmill-wheel-") as scratch:
        if ops:
            if not targets:
                raise InvalidInputError(
                    "`targets` is empty, and there are operators to compile. Name architectures."
                )
            made = Path(scratch, f"{name}_kernels")
            build_ops(made, ops, targets, **build)
            folders.append(made)
        artifacts = [(folder, _manifest(folder)) for folder in folders]
        draft = Path(scratch, "project")
        _write(draft, artifacts, name, namespace, version)
        _put(draft, place)
    return place


def _check_names(name: str, namespace: str, version: str) -> None:
    for what, value in (("name", name), ("namespace", namespace)):
        plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", value)
        if not plain or keyword.iskeyword(value) or identifier(value) != value:
            raise InvalidInputError(
                f"`{what}` is {value!r}; C++, Python and torch take ASCII letters, digits and "
                "`_`, a letter first, and no word of C++ or Python. Choose another."
            )
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        raise InvalidInputError(f"`version` is {version!r}; it needs numbers, as '0.1.0'. Fix it.")


def _put(draft: Path, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(draft, place, dirs_exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"the project cannot be written to {place}: {error.strerror or error}. Name a folder "
            "that you may write to."
        ) from error


def _sorted(sources: Any) -> tuple[list[Path], list[Any]]:
    """Artifacts' folders, and operators."""
    one = isinstance(sources, (str, os.PathLike, Op, OpKernels))
    folders: list[Path] = []
    ops: list[Any] = []
    for source in [sources] if one else list(sources):
        if isinstance(source, (Op, OpKernels)):
            ops.append(source)
        elif Path(source).is_dir() or not str(source).isidentifier():
            folders.append(Path(source))
        else:
            ops.append(source)
    if not folders and not ops:
        raise InvalidInputError("there is nothing to make a project of. Name an operator.")
    return folders, ops


def _manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    damaged = damaged_files(folder, manifest)
    if damaged:
        raise ArtifactError(
            f"the artifact in {folder} is damaged: {damaged[0]} is missing or was changed. Build "
            "it again."
        )
    return manifest


def _write(
    draft: Path,
    artifacts: list[tuple[Path, Manifest]],
    name: str,
    namespace: str,
    version: str,
) -> None:
    manifests = [manifest for _, manifest in artifacts]
    ops = [op for manifest in manifests for op in _ops(manifest, namespace)]
    names_of = {"artifacts": [m.name for m in manifests]}
    names_of["operators"] = ["preload", *(op.name for op in ops)]  # the project's own comes first
    for kind, names in names_of.items():
        twice = sorted({one for one in names if names.count(one) > 1})
        if twice:
            raise ArtifactError(f"two {kind} are named {twice[0]!r}. Leave one of them out.")
    scope: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "project_version": version,
        "version": version_of(manifests[0]),
        "torch": TORCH,
        "torch_version": "0x{:02X}{:02X}000000000000".format(*map(int, TORCH.split("."))),
        "archs": list(dict.fromkeys(chain.from_iterable(map(architectures, manifests)))),
        "artifacts": manifests,
        "ops": ops,
    }
    for folder, manifest in artifacts:
        _write_artifact(draft, folder, manifest)
    for header in (*runtime.HEADERS, *HEADERS):
        _write_text(draft / "include" / RUNTIME / header, runtime.header(header))
    found = templates()
    for path, template in FILES.items():
        content = found.get_template(f"wheel/{template}.j2").render(scope)
        _write_text(draft / path.format(name=name), content)


def _ops(manifest: Manifest, namespace: str) -> list[WheelOp]:
    """An artifact's operators, and the kernels that none of them launches."""
    functions = manifest.functions
    rows = [row for function in functions for form in function.forms for row in form.rows]
    launched = {launch.kernel for row in rows for launch in row.launches}
    alone = [kernel for kernel in manifest.kernels if kernel.name not in launched]
    return [
        *(wheel_op(manifest, function, namespace) for function in functions),
        *(kernel_op(manifest, kernel, namespace) for kernel in alone),
    ]


def _write_artifact(draft: Path, folder: Path, manifest: Manifest) -> None:
    """What a project needs of an artifact, and its operators in C."""
    kept = draft / "csrc" / manifest.name
    own = {f"{manifest.name}.c", f"{manifest.name}.h", MANIFEST_FILE}
    for path in (*manifest.files, MANIFEST_FILE):
        if path in own or path.startswith("kernels/"):
            (kept / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / path, kept / path)
    for path, content in op_c.sources(manifest).items():
        _write_text((draft / "include" if path.endswith(".h") else kept) / path, content)


def _write_text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8", newline="\n")
