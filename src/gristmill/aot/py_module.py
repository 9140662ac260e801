"""The Python module of an artifact: C source for the limited API, from the manifest alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gristmill.aot.c_artifact import RUNTIME, templates, version_of
from gristmill.aot.c_functions import Function, Kernel, kernel_view
from gristmill.aot.c_header import Passed
from gristmill.aot.c_tables import architectures, element_code, tables_of
from gristmill.aot.elements import ALIASES, ELEMENT_BYTES
from gristmill.aot.loading import digest_of, module_source
from gristmill.aot.manifest import KernelEntry, Manifest
from gristmill.native import runtime
from gristmill.record import record

HEADERS = ("exchange.h", "torch_view.h", "module.h")
LAUNCH = ("num_warps", "num_stages", "grid_x", "grid_y", "grid_z", "stream")
DEFAULTS = {"num_warps": "0", "num_stages": "0", "grid_y": "1", "grid_z": "1"}
CONSTEXPRS = {"int": "int_or_none", "bool": "int_or_none", "float": "float_or_none"}
CONSTEXPRS |= {"str": "text_or_none", "type": "type"}


@record
class Taken:
    """An argument: its variable in C, how it is read, and how it is handed on."""

    declared: str
    taken: str
    passed: str


@record
class ModuleFunction:
    """A function of the module.

    Attributes:
        name: in C and in Python. `given`: the names that callers may use, in order.
        required: how many of them have no default. `at`: how many are the kernel's.
        launches: it takes warps, stages and the grid. `grid`: the C function that computes one.
    """

    name: str
    given: list[str]
    required: int
    arguments: list[Taken]
    launches: bool
    grid: str
    doc: str

    @property
    def at(self) -> int:
        """Where the launch's own arguments begin."""
        return len(self.arguments)

    @property
    def passed(self) -> list[str]:
        """What C is handed for the kernel's parameters."""
        return [argument.passed for argument in self.arguments]


def write(manifest: Manifest, folder: str | Path) -> list[str]:
    """Write the module's source into an artifact's folder, beside its C files.

    Args:
        manifest: what was compiled.
        folder: the artifact's, where `c_artifact.write` has been.

    Returns:
        The files, relative to the folder: `<name>_module.c` and what it includes.

    Raises:
        ArtifactError: the manifest has what C's interface cannot.
    """
    made = {module_source(manifest): source(manifest)}
    made |= {f"{RUNTIME}/{name}": runtime.header(name) for name in HEADERS}
    for path, content in made.items():
        Path(folder, path).write_text(content, encoding="utf-8", newline="\n")
    return sorted(made)


def source(manifest: Manifest) -> str:
    """The module's C source."""
    archs = architectures(manifest)
    kernels = [kernel_view(entry, tables_of(entry, archs, {}), archs) for entry in manifest.kernels]
    scope: dict[str, Any] = {
        "name": manifest.name,
        "version": version_of(manifest),
        "api": f"{manifest.name.upper()}_API",
        "digest": digest_of(manifest),
        "doc": f"Kernels compiled ahead of time for {', '.join(archs)}.",
        "aliases": [(alias, f"GRISTMILL_{name.upper()}") for alias, name in _aliases()],
        "functions": [function for kernel in kernels for function in _functions(kernel)],
    }
    return templates().get_template("module.c.j2").render(scope)


def _aliases() -> list[tuple[str, str]]:
    return [(alias, name) for alias, name in ALIASES.items() if name in ELEMENT_BYTES]


def _functions(kernel: Kernel) -> list[ModuleFunction]:
    grid = kernel.grid.name if kernel.grid else ""
    made = [_function(kernel.entry, kernel.launch, LAUNCH, grid)]
    return made if kernel.tuned is None else [*made, _function(kernel.entry, kernel.tuned)]


def _function(
    entry: KernelEntry, function: Function, more: tuple[str, ...] = ("stream",), grid: str = ""
) -> ModuleFunction:
    names = [argument.parameter.name for argument in function.arguments]
    more = tuple(f"{name}_" if name in names else name for name in more)
    shown = [*names, *(f"{name}={DEFAULTS.get(name, 'None')}" for name in more)]
    about = "Launch it" if len(more) > 1 else "Launch it by the tuned choice"
    doc = f"{function.name}($module, {', '.join(shown)})\n--\n\n{about}. {_types(entry)}"
    return ModuleFunction(
        function.name,
        [*names, *more],
        len(names),
        [_taken(argument, index) for index, argument in enumerate(function.arguments)],
        len(more) > 1,
        grid,
        doc.strip(),
    )


def _types(entry: KernelEntry) -> str:
    return " ".join(f"{name} is {', '.join(types)}." for name, types in entry.variables)


def _taken(argument: Passed, index: int) -> Taken:
    """How a parameter of the kernel is read from Python."""
    parameter, name = argument.parameter, argument.name
    given = f"&gm_this, {index}, gm_args[{index}]"
    if parameter.kind == "pointer":
        fixed = 0 if argument.variable >= 0 else element_code(parameter.type)
        taken = f"gm_take_pointer({given}, {fixed}, {int(parameter.optional)}, &{name})"
        passed = name if argument.variable >= 0 else f"{name}.data"
        return Taken(f"gristmill_pointer {name}", taken, passed)
    if parameter.kind == "descriptor":
        taken = f"gm_take_tensor({given}, {parameter.rank}, &{name})"
    elif parameter.kind == "float":
        how = "number" if argument.type == "gristmill_number" else "float"
        taken = f"gm_take_{how}({given}, &{name})"
    elif parameter.kind == "integer":
        taken = f"gm_take_int({given}, &{name})"
    else:
        taken = f"gm_take_{CONSTEXPRS[parameter.type]}({given}, &{name})"
    return Taken(argument.declared, taken, name)
