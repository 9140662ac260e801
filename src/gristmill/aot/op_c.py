"""The operators of an artifact as C functions: conditions, sizes and launches."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from gristmill.aot import functions as nouns
from gristmill.aot.c_artifact import templates, version_of
from gristmill.aot.c_grid import checked
from gristmill.aot.c_header import Passed, field_value, passed
from gristmill.aot.c_names import identifier, text
from gristmill.aot.c_tables import Field, architectures, element_code
from gristmill.aot.manifest import KernelEntry, Manifest
from gristmill.errors import ArtifactError
from gristmill.record import record

HEADERS = ("operand.h", "op.h")
MAX_DIMENSIONS = 8  # native/operand.h has it too


@record
class Asked:
    """A condition, in C and as a message shows it."""

    c: str
    text: str


@record
class Launched:
    """A launch: what is declared before it, the C function, its grid and its arguments."""

    kernel: str
    grid: list[str]
    before: list[str]
    passed: list[str]


@record
class RowView:
    """A row of a form. `number`: among all of the operator's."""

    number: int
    arch: int
    shown: str
    conditions: list[Asked]
    limits: list[Asked]
    workspace: list[str]
    launches: list[Launched]


@record
class FormView:
    """A form. `first`: its first row's number. `test`: whether a call is of it."""

    number: int
    first: int
    text: str
    test: str
    outputs: list[str]
    rows: list[RowView]

    @property
    def has_workspace(self) -> bool:
        """Whether any row needs some."""
        return any(row.workspace for row in self.rows)


@record
class OpView:
    """An operator. `made`: how many outputs and pieces of workspace a call has at most."""

    name: str
    schema: str
    operands: list[str]
    made: int
    forms: list[FormView] = field(default_factory=list)


def sources(manifest: Manifest) -> dict[str, str]:
    """The C source and header of an artifact's operators, by file name, to stand beside its own.

    Raises:
        ArtifactError: an operator has what C's interface cannot.
    """
    scope: dict[str, Any] = {
        "name": manifest.name,
        "version": version_of(manifest),
        "ops": [_Writer(manifest, function).view() for function in manifest.functions],
    }
    made = templates()
    return {
        f"{manifest.name}_ops.{suffix}": made.get_template(f"op.{suffix}.j2").render(scope)
        for suffix in ("c", "h")
    }


class _Writer:
    """Writes one operator."""

    def __init__(self, manifest: Manifest, function: nouns.OpFunction) -> None:
        self._function = function
        self._archs = architectures(manifest)
        self._kernels = {entry.name: entry for entry in manifest.kernels}
        self._names = [argument.name for argument in function.forms[0].arguments]
        self._rows = 0
        if identifier(function.name) != function.name:
            raise ArtifactError(
                f"the operator {function.name!r} cannot be a function of C. Name it with ASCII "
                "letters, and as no word of C or C++."
            )

    def view(self) -> OpView:
        """All that the templates show."""
        function = self._function
        made = max(
            len(form.outputs) + max((len(row.workspace) for row in form.rows), default=0)
            for form in function.forms
        )
        forms = [self._form(i, form) for i, form in enumerate(function.forms)]
        return OpView(function.name, function.schema, self._names, made, forms)

    def _form(self, number: int, form: nouns.OpForm) -> FormView:
        first = self._rows
        places = self._places(form)
        start = len(form.arguments)
        outputs = [self._made(tensor, start + i, places) for i, tensor in enumerate(form.outputs)]
        rows = [self._row(row, form, places) for row in form.rows]
        return FormView(number, first, _shown(form), self._test(form), outputs, rows)

    def _places(self, form: nouns.OpForm) -> dict[str, str]:
        """What expressions may read, in C."""
        found = {}
        for i, argument in enumerate(form.arguments):
            if argument.kind != "tensor":
                continue
            if argument.rank > MAX_DIMENSIONS:
                raise ArtifactError(
                    f"`{argument.name}` of {self._function.name!r} has {argument.rank} "
                    f"dimensions; C's functions take {MAX_DIMENSIONS}. Leave such problems out."
                )
            found[f"{argument.name}_address"] = f"(int64_t)(intptr_t)o[{i}].data"
            for d in range(argument.rank):
                found[f"{argument.name}_size_{d}"] = f"o[{i}].sizes[{d}]"
                found[f"{argument.name}_stride_{d}"] = f"o[{i}].strides[{d}]"
        return found

    def _test(self, form: nouns.OpForm) -> str:
        tests = []
        for i, argument in enumerate(form.arguments):
            if argument.kind == "tensor":
                tests.append(f"o[{i}].dtype == {element_code(argument.type)}")
                tests.append(f"o[{i}].rank == {argument.rank}")
            elif argument.kind == "none":
                tests.append(f"o[{i}].dtype == 0")
            elif argument.kind == "value":
                tests.append(self._equals(i, argument))
        return " && ".join(tests) or "1"

    def _equals(self, index: int, argument: nouns.OpArgument) -> str:
        value = argument.value
        if isinstance(value, bool | int):
            return f"o[{index}].integer == {int(value)}"
        if isinstance(value, str):
            return f"gm_same_text(o[{index}].text, {text(value)})"
        if value is None:
            return f"o[{index}].dtype == 0"
        raise ArtifactError(
            f"`{argument.name}` of {self._function.name!r} is {value!r} in a form; a form is told "
            "by integers, bools and texts."
        )

    def _made(self, tensor: nouns.OpTensor, at: int, places: dict[str, str]) -> str:
        """Statements that fill in an operand to be allocated."""
        lines = [f"o[{at}].data = NULL;", f"o[{at}].dtype = {element_code(tensor.type)};"]
        lines.append(f"o[{at}].rank = {len(tensor.sizes)};")
        for d, (size, stride) in enumerate(zip(tensor.sizes, tensor.strides, strict=True)):
            lines.append(f"o[{at}].sizes[{d}] = {checked(size, places)[0]};")
            lines.append(f"o[{at}].strides[{d}] = {checked(stride, places)[0]};")
        return "\n".join(f"    {line}" for line in lines)

    def _asked(self, condition: nouns.Condition, places: dict[str, str]) -> Asked:
        left, right = (checked(side, places)[0] for side in (condition.left, condition.right))
        return Asked(f"{left} {condition.relation} {right}", str(condition))

    def _row(self, row: nouns.Row, form: nouns.OpForm, places: dict[str, str]) -> RowView:
        at = len(form.arguments) + len(form.outputs)
        slots = {argument.name: i for i, argument in enumerate(form.arguments)}
        slots |= {t.name: len(form.arguments) + i for i, t in enumerate(form.outputs)}
        slots |= {t.name: at + i for i, t in enumerate(row.workspace)}
        self._rows += 1
        config = ", ".join(f"{name}={value}" for name, value in row.config.items())
        return RowView(
            self._rows - 1,
            self._archs.index(row.arch) if row.arch in self._archs else -1,
            f"{row.arch}: {row.implementation} ({config}); {row.reason}",
            [self._asked(condition, places) for condition in row.conditions],
            [self._asked(condition, places) for condition in row.limits],
            [self._made(t, at + i, places) for i, t in enumerate(row.workspace)],
            [self._launch(launch, slots, places) for launch in row.launches],
        )

    def _launch(
        self, launch: nouns.OpLaunch, slots: dict[str, int], places: dict[str, str]
    ) -> Launched:
        entry = self._kernels.get(launch.kernel)
        if entry is None:
            raise ArtifactError(
                f"{self._function.name!r} launches {launch.kernel!r}, which the artifact has not. "
                "Build it again."
            )
        before: list[str] = []
        given = [
            _argument(entry, i, parameter, value, slots, places, before)
            for i, (parameter, value) in enumerate(
                zip(passed(entry), launch.arguments, strict=True)
            )
        ]
        grid = [checked(expression, places)[0] for expression in launch.grid]
        more = [str(launch.num_warps), str(launch.num_stages), "grid[0]", "grid[1]", "grid[2]"]
        return Launched(launch.kernel, grid, before, [*given, *more, "stream"])


def _argument(
    entry: KernelEntry,
    index: int,
    parameter: Passed,
    given: nouns.Passed,
    slots: dict[str, int],
    places: dict[str, str],
    before: list[str],
) -> str:
    """What a launch passes for a parameter, in C; `before` grows by what is declared for it."""
    if given.kind == "tensor":
        place = f"o[{slots[given.source]}]"
        made = f"(gristmill_pointer){{{place}.data, {place}.dtype}}"
        return made if parameter.type == "gristmill_pointer" else f"{place}.data"
    if given.kind == "null":
        typed = parameter.type == "gristmill_pointer"
        return "(gristmill_pointer){NULL, GRISTMILL_NONE}" if typed else "NULL"
    if given.kind == "integer":
        return checked(given.source, places)[0]
    if given.kind == "scalar" and parameter.type == "double":
        return f"o[{slots[given.source]}].number"
    if given.kind == "descriptor":
        place = f"o[{slots[given.source]}]"
        for what, sides in (("shape", given.sizes), ("strides", given.strides)):
            numbers = ", ".join(checked(side, places)[0] for side in sides)
            before.append(f"const int64_t {what}_{index}[] = {{{numbers}}}")
        made = f"{place}.data, {place}.dtype, shape_{index}, strides_{index}"
        return f"(gristmill_descriptor){{{made}}}"
    if given.kind == "constant" and parameter.type != "gristmill_number":
        kinds = {"integer": "int", "float": "float"}
        kind = kinds.get(parameter.parameter.kind, parameter.parameter.type)
        return field_value(Field(parameter.parameter.name, index, kind, (), 1, 0), given.value)
    raise ArtifactError(
        f"{entry.name!r} is passed a {given.kind} for `{parameter.parameter.name}`, which C's "
        "interface cannot. Build the artifact again."
    )


def _shown(form: nouns.OpForm) -> str:
    """A form, as a message lists it."""
    return f"({', '.join(map(_shown_argument, form.arguments))})"


def _shown_argument(argument: nouns.OpArgument) -> str:
    if argument.kind == "tensor":
        dims = f"{argument.rank} dimension{'s' if argument.rank != 1 else ''}"
        return f"{argument.name}: {argument.type}, {dims}"
    if argument.kind == "scalar":
        return f"{argument.name}: a number"
    return f"{argument.name}: {'None' if argument.kind == 'none' else repr(argument.value)}"
