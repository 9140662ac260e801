"""The nouns of an operator in an artifact: which kernels a call of it launches, with what, and
when.

Sizes are expressions in the language of grids (`c_grid`): whole numbers, `+ - * // %`, `cdiv`,
`min` and `max`, over `<argument>_size_<d>` and `<argument>_stride_<d>` (in elements) of tensors,
and `<argument>_address`.
"""

from __future__ import annotations

from typing import Literal

from gristmill.record import record

Relation = Literal["==", "!=", "<", "<="]


@record
class Condition:
    """`left relation right`, both expressions."""

    left: str
    relation: Relation
    right: str

    def __str__(self) -> str:
        return f"{self.left} {self.relation} {self.right}"


@record
class OpArgument:
    """An argument of a form of an operator, in the schema's order.

    Attributes:
        kind: `tensor`; `none`, an optional tensor that is absent; `scalar`, a float that is passed
            on; `value`, a bool, an int or a text that the form was made for.
        type: of a tensor, its element type (`bf16`); of a scalar, `fp32`.
        rank: of a tensor: its dimensions.
        value: of a `value`.
    """

    name: str
    kind: Literal["tensor", "none", "scalar", "value"]
    type: str = ""
    rank: int = 0
    value: bool | int | float | str | None = None


@record
class OpTensor:
    """An output or a piece of workspace, which the caller allocates uninitialised: sizes and
    strides as expressions. It starts on 16 bytes or more."""

    name: str
    type: str
    sizes: tuple[str, ...]
    strides: tuple[str, ...]


@record
class Passed:
    """What a launch passes for a parameter of its kernel, in order, constexprs included.

    Attributes:
        kind: `tensor`, the address of an argument, an output or a piece of workspace; `null`;
            `integer`, an expression; `scalar`, a float argument of the operator; `constant`, a
            number or a constexpr's value; `descriptor`, a tensor seen with `sizes` and `strides`.
        source: the tensor's or the scalar's name, or the expression.
        value: of a `constant`; an element type by its name.
    """

    kind: Literal["tensor", "null", "integer", "scalar", "constant", "descriptor"]
    source: str = ""
    value: bool | int | float | str | None = None
    sizes: tuple[str, ...] = ()
    strides: tuple[str, ...] = ()


@record
class OpLaunch:
    """A launch of one of the artifact's kernels.

    Attributes:
        kernel: the kernel's name in the manifest.
        arguments: one for each of its parameters.
        grid: three expressions. Where one is 0, nothing is launched.
    """

    kernel: str
    arguments: tuple[Passed, ...]
    grid: tuple[str, str, str]
    num_warps: int
    num_stages: int


@record
class Row:
    """What calls of some sizes launch, one launch after another on one stream.

    Attributes:
        arch: the architecture that it was chosen for.
        conditions: what the launches rely on; where one fails, they must not be made.
        limits: the sizes that the choice was made for; for others it is right, and may be slow.
        workspace: memory that is needed for the time of the launches.
        implementation, config: the chosen candidate.
        reason: why it was chosen.
    """

    arch: str
    conditions: tuple[Condition, ...]
    limits: tuple[Condition, ...]
    workspace: tuple[OpTensor, ...]
    launches: tuple[OpLaunch, ...]
    implementation: str
    config: dict[str, bool | int | float | str | None]
    reason: str


@record
class OpForm:
    """An operator for arguments of these types.

    Attributes:
        conditions: what `outputs` rely on; mostly nothing.
        rows: of each architecture, from the smallest sizes up. A call takes the first whose
            conditions and limits hold; where there is none, the last whose conditions do.
    """

    arguments: tuple[OpArgument, ...]
    conditions: tuple[Condition, ...]
    outputs: tuple[OpTensor, ...]
    rows: tuple[Row, ...]


@record
class OpFunction:
    """An operator of the library.

    Attributes:
        name: the operator's.
        schema: torch's: names, order, defaults.
        forms: by the types of arguments; a call has at most one.
    """

    name: str
    schema: str
    forms: tuple[OpForm, ...]
