"""The C side of an artifact: header, source, runtime, CMake and pkg-config files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import jinja2

from gristmill.aot.c_functions import Function, Kernel, kernel_view
from gristmill.aot.c_header import (
    FIELD_KINDS,
    Passed,
    field_test,
    field_type,
    field_value,
)
from gristmill.aot.c_names import comment, identifier, text
from gristmill.aot.c_tables import Field, Launched, architectures, element_code, tables_of
from gristmill.aot.manifest import Manifest, Value
from gristmill.errors import ArtifactError
from gristmill.native import runtime
from gristmill.record import record

RUNTIME = "gristmill"  # the folder of the runtime's headers, beside the source
LINE = 96
Rows = list[tuple[Any, ...]]
SUFFIXES = ("last_error", "preload", "unload", "set_allocator")


@record
class Embedded:
    """A binary: its file in the artifact, its bytes, and the architecture that it is for."""

    path: str
    size: int
    arch: str


def write(manifest: Manifest, folder: str | Path) -> list[str]:
    """Writes an artifact's C files into its folder, where its binaries are already.

    Nothing of what is written depends on where the folder is.

    Args:
        manifest: what was compiled; `kernels/<binary>.cubin` or `.hsaco` must be in the folder.
        folder: the artifact's.

    Returns:
        The files, relative to the folder, with `/`: `<name>.h`, `<name>.c`, `gristmill/*.h` (the
        runtime), `CMakeLists.txt`, `<name>-config.cmake`, `<name>.pc`.

    Raises:
        ArtifactError: the manifest has what C's interface cannot; a binary is not in the folder.
    """
    folder = Path(folder)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", manifest.name) or (
        identifier(manifest.name) != manifest.name
    ):
        raise ArtifactError(
            f"the artifact is named {manifest.name!r}; C's functions and files take their names "
            "from it. Use ASCII letters, digits and `_`, a letter first, and no word of C or C++."
        )
    made = _render(manifest, folder)
    made |= {f"{RUNTIME}/{name}": runtime.header(name) for name in runtime.HEADERS}
    for path, content in made.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8", newline="\n")
    return sorted(made)


def _render(manifest: Manifest, folder: Path) -> dict[str, str]:
    name = manifest.name
    archs = architectures(manifest)
    functions: dict[Launched, int] = {}
    tables = [tables_of(entry, archs, functions) for entry in manifest.kernels]
    kernels = [
        kernel_view(entry, t, archs) for entry, t in zip(manifest.kernels, tables, strict=True)
    ]
    _check_names(name, kernels)
    binaries = {f.binary: _embedded(folder, f.arch, f.binary) for f in functions}
    slots = list(dict.fromkeys(f.slots for f in functions if f.slots))
    maps = list(dict.fromkeys(f.maps for f in functions if f.maps))
    scope: dict[str, Any] = {
        "name": name,
        "version": version_of(manifest),
        "guard": f"{name.upper()}_H",
        "api": f"{name.upper()}_API",
        "types": runtime.header(runtime.PUBLIC),
        "archs": archs,
        "binaries": list(binaries.values()),
        "elements": list(runtime.ELEMENTS),
        "kernels": kernels,
        "starts": {k.name: _starts(k) for k in kernels},
        "slot_rows": [[_row(*slot) for slot in row] for row in slots],
        "map_rows": [[_row(*row[:-1], _row(*row[-1])) for row in rows] for rows in maps],
        "kernel_rows": [
            _kernel_row(name, function, archs, list(binaries), slots, maps)
            for function in functions
        ],
    }
    found = templates()
    files = {
        f"{name}.h": "artifact.h.j2",
        f"{name}.c": "artifact.c.j2",
        "CMakeLists.txt": "CMakeLists.txt.j2",
        f"{name}-config.cmake": "config.cmake.j2",
        f"{name}.pc": "artifact.pc.j2",
    }
    return {path: found.get_template(t).render(scope) for path, t in files.items()}


def version_of(manifest: Manifest) -> str:
    """The version of the gristmill that built an artifact, as CMake takes it."""
    version = re.match(r"\d+(\.\d+)*", manifest.tools.get("gristmill", ""))
    return version[0] if version else "0"


def _check_names(name: str, kernels: list[Kernel]) -> None:
    taken = dict.fromkeys((f"{name}_{suffix}" for suffix in SUFFIXES), "the artifact")
    for kernel in kernels:
        for function in _functions(kernel):
            if function.name in taken:
                raise ArtifactError(
                    f"the kernel {kernel.name!r} needs the C function {function.name!r}, which "
                    f"{taken[function.name]} has. Rename the kernel or the artifact."
                )
            taken[function.name] = f"the kernel {kernel.name!r}"


def _embedded(folder: Path, arch: str, binary: str) -> Embedded:
    path = f"kernels/{binary}.{'cubin' if _is_cuda(arch) else 'hsaco'}"
    try:
        return Embedded(path, (folder / path).stat().st_size, arch)
    except OSError as error:
        raise ArtifactError(
            f"the binary {path} of the artifact cannot be read ({error.strerror}). Build the "
            "artifact again."
        ) from None


def _is_cuda(arch: str) -> bool:
    return arch.startswith("sm_")


def _row(*values: Any) -> str:
    return "{" + ", ".join(str(value) for value in values) + "}"


def _kernel_row(
    name: str, function: Launched, archs: list[str], binaries: list[str], slots: Rows, maps: Rows
) -> str:
    return _row(
        text(function.symbol),
        binaries.index(function.binary),
        archs.index(function.arch),
        function.threads,
        function.cluster,
        function.shared,
        function.scratch,
        function.alignment,
        f"gm_{name}_slots_{slots.index(function.slots)}" if function.slots else "NULL",
        f"gm_{name}_maps_{maps.index(function.maps)}" if function.maps else "NULL",
        len(function.slots),
        len(function.maps),
        int(function.cooperative),
        int(function.pdl),
    )


def _starts(kernel: Kernel) -> list[int]:
    """Where each group's variants start."""
    return [0, *accumulate(len(group.needs) for group in kernel.tables.groups)]


def _needs(kernel: Kernel) -> list[str]:
    """Masks of all variants, a row each."""
    words = range(kernel.tables.words)
    return [
        ", ".join(_word(need >> 64 * word & (1 << 64) - 1) for word in words)
        for group in kernel.tables.groups
        for need in group.needs
    ]


def _word(value: int) -> str:
    return f"UINT64_C({value:#x})"


def _int64(value: int) -> str:
    return "INT64_MIN" if value <= -(1 << 63) else f"INT64_C({min(value, (1 << 63) - 1)})"


def _wrapped(items: Iterable[str], indent: int = 4) -> str:
    """A list between parentheses, on lines of at most LINE columns."""
    lines, pad = [""], " " * indent
    for item in [f"{item}, " for item in items]:
        if lines[-1] and len(pad) + len(lines[-1]) + len(item) > LINE:
            lines.append("")
        lines[-1] += item
    shown = f"\n{pad}".join(line.rstrip() for line in lines).removesuffix(",")
    return f"\n{pad}{shown}" if shown else "void"


def _functions(kernel: Kernel) -> list[Function]:
    return [f for f in (kernel.launch, kernel.grid, kernel.tuned) if f is not None]


def _shown(value: Value) -> str:
    return text(str(value))


def _options(field: Field) -> str:
    return ", ".join(str(value) for value in field.values)


def _described(argument: Passed) -> str:
    parameter = argument.parameter
    notes = {
        "pointer": f"a pointer to {parameter.type}{', or null' if parameter.optional else ''}",
        "descriptor": f"a tensor of {parameter.type} with {parameter.rank} dimensions",
        "integer": "a bool" if parameter.type == "bool" else "an integer",
        "float": f"a number, rounded once to {parameter.type}",
        "constexpr": f"a constexpr ({parameter.type})",
    }
    return notes[parameter.kind]


def templates() -> jinja2.Environment:
    """The templates of an artifact's files, with the filters that they use."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("gristmill.aot"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - C, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "text": text,
        "comment": comment,
        "wrapped": _wrapped,
        "described": _described,
        "options": _options,
        "functions": _functions,
        "vendor": lambda arch: "GM_CUDA" if _is_cuda(arch) else "GM_HIP",
        "capability": lambda arch: int(arch[3:]) if _is_cuda(arch) else 0,
        "code": element_code,
        "word": _word,
        "int64": _int64,
        "shown": _shown,
        "field_type": field_type,
        "field_kind": lambda field: FIELD_KINDS[field.kind],
        "literal": field_value,
        "test": field_test,
        "needs": _needs,
        "variants": lambda kernel: [k for group in kernel.tables.groups for k in group.kernels],
    }
    return made
