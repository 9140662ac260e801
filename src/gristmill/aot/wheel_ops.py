"""What the templates of a project of operators show of one: in C++, and in Python."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from gristmill.aot import functions as nouns
from gristmill.aot.c_header import Passed, passed
from gristmill.aot.c_tables import element_code
from gristmill.aot.elements import ALIASES
from gristmill.aot.manifest import KernelEntry, Manifest
from gristmill.errors import ArtifactError
from gristmill.record import record

DTYPES = {
    name: str(found)
    for alias, name in ALIASES.items()
    if isinstance(found := getattr(torch, alias, None), torch.dtype)
}
# How arguments of a schema are taken in C++.
TYPES = {
    "Tensor": "const Tensor &",
    "Optional[Tensor]": "const std::optional<Tensor> &",
    "float": "double ",
    "int": "int64_t ",
    "bool": "bool ",
    "str": "const std::string &",
}
SIZE = re.compile(r"\b(\w+)_(size|stride)_(\d+)\b")


@record
class FormShape:
    """A form in Python: whether a call is of it, and what it returns."""

    test: str
    made: str


@record
class KernelCall:
    """How a kernel's C function is called: what is declared before it, its arguments, and the C
    function of its grid."""

    before: list[str]
    passed: list[str]
    grid: str


@record
class WheelOp:
    """An operator of a project.

    Attributes:
        artifact: whose it is. `names`: of arguments. `types`: theirs in C++.
        returned: what C++ returns. `outputs`: how many tensors that is.
        signature: of the Python function. `may_copy`: no argument is written to.
        kernel: where it is a kernel by itself, how that is called.
    """

    name: str
    artifact: str
    schema: str
    names: list[str]
    types: list[str]
    returned: str
    outputs: int
    signature: str
    may_copy: bool
    archs: str
    forms: list[FormShape]
    kernel: KernelCall | None = None

    @property
    def declared(self) -> list[str]:
        """Parameters in C++."""
        return [f"{kind}{name}" for kind, name in zip(self.types, self.names, strict=True)]


def wheel_op(manifest: Manifest, function: nouns.OpFunction, namespace: str) -> WheelOp:
    """All that the templates show of an operator.

    Raises:
        ArtifactError: torch's stable interface, or this one, does not take its arguments.
    """
    schema = _parsed(namespace, function.schema)
    names = [argument.name for argument in schema.arguments]
    types = []
    for argument in schema.arguments:
        if str(argument.type) not in TYPES:
            raise ArtifactError(
                f"`{argument.name}` of {function.name!r} is of type {argument.type}; a project's "
                f"operators take {', '.join(TYPES)}. Leave the operator out."
            )
        types.append(TYPES[str(argument.type)])
    outputs = len(schema.returns)
    if any(str(returned.type) != "Tensor" for returned in schema.returns):
        raise ArtifactError(
            f"{function.name!r} returns more than tensors ({function.schema}). Leave it out."
        )
    returned = {0: "void", 1: "Tensor"}.get(
        outputs, f"std::tuple<{', '.join(['Tensor'] * outputs)}>"
    )
    written = [a for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    return WheelOp(
        function.name,
        manifest.name,
        function.schema,
        names,
        types,
        returned,
        outputs,
        ", ".join(_parameter(argument) for argument in schema.arguments),
        not written,
        ", ".join(dict.fromkeys(row.arch for form in function.forms for row in form.rows)),
        [_shape(form) for form in function.forms],
    )


def _parsed(namespace: str, schema: str) -> Any:
    return torch._C.parse_schema(f"{namespace}::{schema}")  # noqa: SLF001 - there is no other parser


def kernel_op(manifest: Manifest, entry: KernelEntry, namespace: str) -> WheelOp:
    """All that the templates show of a kernel that no operator launches: an operator by itself,
    which may write to every tensor and returns nothing.

    Raises:
        ArtifactError: it takes what no schema says.
    """
    declared, before, given = [], [], []
    for argument in passed(entry):
        declared.append(f"{_schema_type(entry, argument)} {argument.parameter.name}")
        given.append(_given(argument, before))
    more = ["int num_warps=0", "int num_stages=0", "int grid_x=-1", "int grid_y=1", "int grid_z=1"]
    text = f"{entry.name}({', '.join([*declared, *more])}) -> ()"
    arguments = _parsed(namespace, text).arguments
    names = [a.name for a in arguments]
    if any(a.name != b.name for a, b in zip(passed(entry), arguments, strict=False)):
        raise ArtifactError(
            f"{entry.name!r} has a parameter whose name is a word of C++. Rename it, or leave the "
            "kernel out."
        )
    grid = f"{entry.name}_grid" if entry.grid else ""
    return WheelOp(
        entry.name,
        manifest.name,
        text,
        names,
        [TYPES[str(argument.type)] for argument in arguments],
        "void",
        0,
        ", ".join(_parameter(argument) for argument in arguments),
        False,
        ", ".join(dict.fromkeys(variant.arch for variant in entry.variants)),
        [FormShape("True", "None")],
        KernelCall(before, given, grid),
    )


def _schema_type(entry: KernelEntry, argument: Passed) -> str:
    """The type of a kernel's parameter in a schema; every tensor may be written to."""
    parameter = argument.parameter
    index = entry.parameters.index(parameter)
    if parameter.kind in ("pointer", "descriptor"):
        return f"Tensor(a{index}!){'?' if parameter.optional else ''}"
    if parameter.kind == "float" and argument.type == "double":
        return "float"
    if parameter.kind == "integer":
        return "bool" if parameter.type == "bool" else "int"
    values = [variant.arguments[index].value for variant in entry.variants]
    if parameter.kind == "constexpr" and parameter.type != "type" and None not in values:
        return parameter.type
    raise ArtifactError(
        f"`{parameter.name}` of {entry.name!r} ({parameter.kind}, {parameter.type}) is what no "
        "schema of torch's says: a type, a number of any type, or a constant that may be None. "
        "Call the kernel by `load`, or leave it out."
    )


def _given(argument: Passed, before: list[str]) -> str:
    """A kernel's argument in C++; `before` grows by what is declared for it."""
    parameter, name = argument.parameter, argument.name
    if parameter.kind == "pointer":
        typed = argument.type == "gristmill_pointer"
        fixed = 0 if typed else element_code(parameter.type)
        before.append(f"const auto gm_{name} = gm_launch.pointer({name}, {fixed})")
        return f"gm_{name}" if typed else f"gm_{name}.data"
    if parameter.kind == "descriptor":
        before.append(f"const auto gm_{name} = gm_launch.descriptor({name}, {parameter.rank})")
        return f"gm_{name}"
    return f"{name}.c_str()" if parameter.type == "str" else name


def _parameter(argument: Any) -> str:
    default = f" = {argument.default_value!r}" if argument.has_default_value() else ""
    return f"{argument.name}: Any{default}"


def _shape(form: nouns.OpForm) -> FormShape:
    tests, first = [], ""
    for argument in form.arguments:
        if argument.kind == "tensor":
            first = first or argument.name
            tests.append(f"is_tensor({argument.name}, {DTYPES[argument.type]}, {argument.rank})")
        elif argument.kind == "none":
            tests.append(f"{argument.name} is None")
        elif argument.kind == "value":
            tests.append(f"{argument.name} == {argument.value!r}")
    made = [
        f"empty({first}, {DTYPES[tensor.type]}, {_sizes(tensor.sizes)}, {_sizes(tensor.strides)})"
        for tensor in form.outputs
    ]
    returned = made[0] if len(made) == 1 else f"({', '.join(made)})" if made else "None"
    return FormShape(" and ".join(tests) or "True", returned)


def _sizes(expressions: Sequence[str]) -> str:
    return f"[{', '.join(map(_python, expressions))}]"


def _python(expression: str) -> str:
    """An expression of sizes in Python, where they may be symbols."""
    sided = SIZE.sub(
        lambda m: f"{m[1]}.shape[{m[3]}]" if m[2] == "size" else f"{m[1]}.stride({m[3]})",
        expression,
    )
    return re.sub(r"\b(min|max)\(", r"torch.sym_\1(", sided)
