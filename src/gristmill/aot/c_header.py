"""How a kernel looks from C and C++: its functions' parameters, and how their values are taken."""

from __future__ import annotations

import math

from gristmill.aot.c_names import identifier, identifiers, integer, text
from gristmill.aot.c_tables import Condition, Field, element_code
from gristmill.aot.manifest import KernelEntry, Parameter, Value
from gristmill.errors import ArtifactError
from gristmill.native.runtime import ELEMENTS
from gristmill.record import record

CONSTEXPRS = {
    "int": "int64_t",
    "bool": "int64_t",
    "float": "double",
    "str": "const char *",
    "type": "int32_t",
}
FIELD_KINDS = {
    "variable": "GM_TYPE_VARIABLE",
    "int": "GM_INTEGER",
    "bool": "GM_INTEGER",
    "float": "GM_FLOAT",
    "str": "GM_TEXT",
    "type": "GM_TYPE",
}
RANGES = {
    "i8": "{0} == (int8_t){0}",
    "i16": "{0} == (int16_t){0}",
    "i32": "{0} == (int32_t){0}",
    "u1": "(uint64_t){0} <= 1",
    "u8": "(uint64_t){0} <= UINT8_MAX",
    "u16": "(uint64_t){0} <= UINT16_MAX",
    "u32": "(uint64_t){0} <= UINT32_MAX",
    "u64": "{0} >= 0",
}


@record
class Passed:
    """A parameter of a C function.

    Attributes:
        name: in C. `type`: of C, to be followed by the name.
        variable: the number of the type variable that it takes part in; -1: none.
        fixed: the code of the element type that a descriptor must have; 0: any.
    """

    parameter: Parameter
    name: str
    type: str
    variable: int = -1
    fixed: int = 0

    @property
    def declared(self) -> str:
        """`int64_t n`."""
        return f"{self.type}{'' if self.type.endswith('*') else ' '}{self.name}"

    @property
    def address(self) -> str:
        """The address that a pointer or descriptor holds."""
        plain = self.parameter.kind == "pointer" and self.variable < 0
        return self.name if plain else f"{self.name}.data"

    @property
    def absent(self) -> str:
        """Whether it is a null pointer."""
        return "0" if self.type == "gristmill_number" else f"!{self.address}"

    @property
    def value(self) -> str:
        """Its 64 bits among a call's values."""
        kind, type_ = self.parameter.kind, self.parameter.type
        if kind == "pointer":
            return f"(uint64_t)(uintptr_t){self.address}"
        if kind == "descriptor":
            return f"(uint64_t)(uintptr_t)&{self.name}"
        if kind == "float" or type_ == "float":
            return f"gm_bits({self.name}{'' if self.type == 'double' else '.value'})"
        if type_ == "str":
            return f"(uint64_t)(uintptr_t){self.name}"
        if type_ == "bool" and kind == "integer":
            return f"(uint64_t)({self.name} != 0)"
        return f"(uint64_t)(int64_t){self.name}"


def passed(entry: KernelEntry) -> list[Passed]:
    """A kernel's parameters as C has them.

    Raises:
        ArtifactError: two names are one in C, or a type is unknown there.
    """
    variables = [name for name, _ in entry.variables]
    functions = {entry.name, f"{entry.name}_grid"}  # a parameter would hide them
    plain = [f"{p.name}_" if p.name in functions else p.name for p in entry.parameters]
    names = identifiers(plain, entry.name)
    carried = {p.type for p in entry.parameters if p.kind in ("pointer", "descriptor")}
    made: list[Passed] = []
    for parameter, name in zip(entry.parameters, names, strict=True):
        variable = variables.index(parameter.type) if parameter.type in variables else -1
        fixed = 0
        if parameter.kind == "pointer":
            type_ = "gristmill_pointer" if variable >= 0 else "const void *"
        elif parameter.kind == "descriptor":
            type_ = "gristmill_descriptor"
            fixed = element_code(parameter.type) if variable < 0 else 0
        elif parameter.kind == "float":
            lone = variable >= 0 and parameter.type not in carried
            type_ = "gristmill_number" if lone else "double"
            variable = variable if lone else -1  # else its tensors say what it is
        elif parameter.kind == "integer":
            type_ = "int64_t"
        elif parameter.type in CONSTEXPRS:
            type_ = CONSTEXPRS[parameter.type]
        else:
            raise ArtifactError(
                f"the constexpr {parameter.name!r} of {entry.name!r} has the type "
                f"{parameter.type!r}; C's interface takes {', '.join(CONSTEXPRS)}."
            )
        made.append(Passed(parameter, name, type_, variable, fixed))
    return made


def meets(condition: Condition, arguments: list[Passed]) -> str:
    """A condition in C."""
    argument = arguments[condition.parameter]
    if condition.fact == "GM_FITS":
        return RANGES[condition.type].format(argument.name)
    if condition.fact == "GM_IS_ONE":
        return f"{argument.name} == 1"
    if condition.fact == "GM_MULTIPLE":
        return f"({argument.name} & 15) == 0"
    if condition.fact == "GM_DIVISIBLE":
        return f"((uintptr_t){argument.address} & 15) == 0"
    return f"{argument.address} {'==' if condition.fact == 'GM_IS_NULL' else '!='} NULL"


def field_value(field: Field, value: Value) -> str:
    """A value of a field as a literal of C."""
    where = f"the constexpr {field.name!r}"
    if field.kind in ("variable", "type"):
        name = next(name for name, code in ELEMENTS.items() if code == element_code(value))
        return f"GRISTMILL_{name.upper()}"
    if field.kind == "str":
        return "NULL" if value is None else text(str(value))
    if field.kind == "float":
        number = math.nan if value is None else float(value)
        return f"{number.hex()}" if math.isfinite(number) else _unbounded(number)
    if value is None:
        return "GRISTMILL_NO_VALUE"
    return integer(int(value), where)


def _unbounded(number: float) -> str:
    if math.isnan(number):
        return '__builtin_nan("")'
    return "__builtin_inf()" if number > 0 else "-__builtin_inf()"


def field_test(field: Field, value: Value) -> str:
    """Whether `value` of C is this one, where a `switch` cannot tell."""
    if field.kind == "str":
        return "!value" if value is None else f"gm_same_text(value, {field_value(field, value)})"
    if value is None or math.isnan(float(value)):
        return "value != value"
    return f"gm_bits(value) == gm_bits({field_value(field, value)})"


def field_type(field: Field) -> str:
    """The type of a field's values in C."""
    return "int32_t" if field.kind == "variable" else CONSTEXPRS[field.kind]


@record
class Template:
    """A function's face in C++: the element types of its tensors are deduced.

    Attributes:
        types: names of template parameters. `declared`: parameters. `forwarded`: arguments for C.
    """

    types: list[str]
    declared: list[str]
    forwarded: list[str]


def template(entry: KernelEntry, arguments: list[Passed]) -> Template | None:
    """How C++ may call a function with these parameters; None: just as C does."""
    generic = [a for a in arguments if a.variable >= 0 and a.type != "gristmill_descriptor"]
    if not generic:
        return None
    names = {i: f"{identifier(name)}_type" for i, (name, _) in enumerate(entry.variables)}
    deduced = {a.variable for a in generic if not a.parameter.optional}
    declared, forwarded = [], []
    for argument in arguments:
        if argument not in generic:
            declared.append(argument.declared)
            forwarded.append(argument.name)
            continue
        type_ = names[argument.variable]
        if argument.type == "gristmill_number":
            declared.append(f"{type_} {argument.name}")
            forwarded.append(f"gristmill::number({argument.name})")
            continue
        if argument.parameter.optional and argument.variable in deduced:
            type_ = f"typename gristmill::same<{type_}>::type"  # so that it may be nullptr
        declared.append(f"const {type_} *{argument.name}")
        forwarded.append(f"gristmill::pointer<{names[argument.variable]}>({argument.name})")
    used = sorted({a.variable for a in generic})
    return Template([names[i] for i in used], declared, forwarded)
