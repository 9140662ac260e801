"""What the templates of an artifact's C files show of one kernel."""

from __future__ import annotations

from dataclasses import field

from gristmill.aot.c_grid import checked
from gristmill.aot.c_header import Passed, Template, field_value, meets, passed, template
from gristmill.aot.c_names import identifier
from gristmill.aot.c_tables import ARCH_BITS, Field, Tables
from gristmill.aot.manifest import Choice, KernelEntry
from gristmill.aot.selecting import named
from gristmill.errors import ArtifactError
from gristmill.record import record

LAUNCHED = ["int32_t num_warps", "int32_t num_stages"]
GRID = ["int64_t grid_x", "int64_t grid_y", "int64_t grid_z"]


@record
class Function:
    """A C function: its name, what it takes, and its face in C++."""

    name: str
    arguments: list[Passed]
    more: list[str]
    template: Template | None

    @property
    def declared(self) -> list[str]:
        """Its parameters."""
        return [*(a.declared for a in self.arguments), *self.more]

    @property
    def variables(self) -> dict[int, list[Passed]]:
        """Of each type variable, by its number, the arguments that take part in it."""
        found: dict[int, list[Passed]] = {}
        for argument in self.arguments:
            if argument.variable >= 0:
                found.setdefault(argument.variable, []).append(argument)
        return found

    @property
    def forwarded(self) -> list[str]:
        """The arguments that follow the kernel's, by name."""
        return [m.replace("*", " ").split()[-1].partition("[")[0] for m in self.more]


@record
class ChoiceRow:
    """A tuned choice as the tables have it. `limits`: (parameter, smallest, largest)."""

    key: int
    mask: int
    num_warps: int
    num_stages: int
    limits: list[tuple[int, int, int]]
    values: dict[str, str]


@record
class Kernel:
    """A kernel of an artifact, for the templates.

    Attributes:
        launch, grid, tuned: its functions; the last two where the manifest has what they need.
        facts: C expressions of words of facts.
        decided: constexprs that every tuned choice decides.
        checks: names of the grid's expressions, and arguments that must not be 0 for them.
    """

    entry: KernelEntry
    name: str
    tables: Tables
    launch: Function
    facts: list[str]
    grid: Function | None = None
    tuned: Function | None = None
    expressions: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    reads: set[str] = field(default_factory=set)
    choices: list[ChoiceRow] = field(default_factory=list)
    decided: list[Field] = field(default_factory=list)

    @property
    def constexprs(self) -> list[Field]:
        """The fields that are constexprs."""
        return [f for f in self.tables.fields if f.kind != "variable"]

    def carriers(self, field: Field) -> str:
        """The parameters that are of a type variable, in words."""
        names = [a.parameter.name for a in self.launch.variables.get(field.index, [])]
        return named(names)

    @property
    def free_bits(self) -> int:
        """Bits of a key that tuned choices decide."""
        return sum(f.mask for f in self.decided)


def kernel_view(entry: KernelEntry, tables: Tables, archs: list[str]) -> Kernel:
    """Everything that the templates show of a kernel.

    Raises:
        ArtifactError: a name, a type or a grid has no form in C.
    """
    arguments = passed(entry)
    name = identifier(entry.name)
    if name != entry.name:
        raise ArtifactError(
            f"the kernel {entry.name!r} cannot be a function of C. Name it with ASCII letters, and "
            "as no word of C or C++."
        )
    face = template(entry, arguments)
    launch = Function(name, arguments, [*LAUNCHED, *GRID, "void *stream"], face)
    facts = [_word(tables, arguments, w) for w in range(tables.words)]
    choices = [row for c in entry.choices if (row := _choice(entry, c, tables, archs))]
    if not entry.grid:
        return Kernel(entry, name, tables, launch, facts, choices=choices)
    if len(entry.grid) > 3:
        raise ArtifactError(
            f"the grid of {entry.name!r} has {len(entry.grid)} dimensions; a grid has 1 to 3."
        )
    names = {a.parameter.name: a.name for a in arguments if a.type == "int64_t"} | {
        "num_warps": "num_warps",
        "num_stages": "num_stages",
        **_clusters(entry),
    }
    written = [checked(expression, names) for expression in entry.grid]
    reads = set().union(*(used for _, used in written))
    grid = Function(f"{name}_grid", arguments, [*LAUNCHED, "int64_t grid[3]"], face)
    common = set.intersection(*(set(row.values) for row in choices)) if choices else set()
    decided = [f for f in tables.fields if f.kind != "variable" and f.name in common]
    given = [a for a in arguments if a.parameter.name not in common]
    return Kernel(
        entry,
        name,
        tables,
        launch,
        facts,
        grid,
        Function(f"{name}_tuned", given, ["void *stream"], template(entry, given))
        if choices
        else None,
        [text for text, _ in written],
        [n for n in ("num_warps", "num_stages") if n in reads],
        reads,
        choices,
        decided,
    )


def _clusters(entry: KernelEntry) -> dict[str, str]:
    sizes = {variant.cluster for variant in entry.variants}
    return {"num_ctas": f"INT64_C({sizes.pop()})"} if len(sizes) == 1 else {}


def _word(tables: Tables, arguments: list[Passed], word: int) -> str:
    bits = enumerate(tables.conditions[64 * word : 64 * word + 64])
    terms = [f"(uint64_t)({meets(condition, arguments)}) << {i}" for i, condition in bits]
    return "\n        | ".join(terms) or "0"


def _choice(
    entry: KernelEntry, choice: Choice, tables: Tables, archs: list[str]
) -> ChoiceRow | None:
    """A choice's row; None where no variant has what it chooses."""
    wanted = {
        f: choice.types[f.index] if f.kind == "variable" else choice.constexprs[f.name]
        for f in tables.fields
        if (choice.types if f.kind == "variable" else f.name in choice.constexprs)
    }
    if choice.arch not in archs or not all(f.has(value) for f, value in wanted.items()):
        return None
    mask = sum(f.mask for f in wanted) | ((1 << ARCH_BITS) - 1) << tables.arch_shift
    key = archs.index(choice.arch) << tables.arch_shift | sum(
        f.placed(v) for f, v in wanted.items()
    )
    if not any(
        (group.key ^ key) & mask == 0
        and (group.num_warps, group.num_stages) == (choice.num_warps, choice.num_stages)
        for group in tables.groups
    ):
        return None
    where = {p.name: i for i, p in enumerate(entry.parameters)}
    return ChoiceRow(
        key,
        mask,
        choice.num_warps,
        choice.num_stages,
        [(where[name], low, high) for name, low, high in choice.limits],
        {f.name: field_value(f, v) for f, v in wanted.items() if f.kind != "variable"},
    )
