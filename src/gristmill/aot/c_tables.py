"""An artifact's tables: its kernels' variants as keys and masks, its binaries' functions once each.

A call has a *key*, the numbers of its types and constexprs among those compiled, and *facts*, one
bit a condition (`x` is at a multiple of 16, `n` is one, `n` fits i32). Variants of a key are
tried in the manifest's order; the first of which every condition holds is launched.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gristmill.aot.manifest import (
    Argument,
    Descriptor,
    KernelEntry,
    Manifest,
    Parameter,
    Value,
    Variant,
)
from gristmill.errors import ArtifactError
from gristmill.native.runtime import ELEMENTS
from gristmill.record import record

ARCH_BITS = 6
MAX_ARCHS, MAX_DESCRIPTORS, MAX_SLOTS, MAX_RANK = 32, 16, 256, 5  # native/tables.h has them too
FLOAT_PASSES = {"fp16": "GM_FP16", "bf16": "GM_BF16", "fp32": "GM_FP32", "fp64": "GM_VALUE"}


@record
class Field:
    """What must be equal: a type variable, or a constexpr.

    Attributes:
        index: of the variable, or of the constexpr among the parameters.
        kind: `variable`, or the constexpr's type.
        values: those that variants have. `bits`, `shift`: where the number of one stands in a key.
    """

    name: str
    index: int
    kind: str
    values: tuple[Value, ...]
    bits: int
    shift: int

    def number(self, value: Value) -> int:
        """The number of a value: `True`, `1` and `1.0` are three."""
        return [_exact(v) for v in self.values].index(_exact(value))

    def has(self, value: Value) -> bool:
        """Whether a variant has the value."""
        return _exact(value) in [_exact(v) for v in self.values]

    def placed(self, value: Value) -> int:
        """A value's part of a key."""
        return self.number(value) << self.shift

    @property
    def unknown(self) -> int:
        """What stands for a value that no variant has."""
        return (1 << self.bits) - 1

    @property
    def mask(self) -> int:
        """Its bits of a key."""
        return self.unknown << self.shift


@record
class Condition:
    """A condition of a parameter: `GM_IS_NULL`, `GM_NOT_NULL`, `GM_DIVISIBLE`, `GM_MULTIPLE`,
    `GM_IS_ONE`, or `GM_FITS` an integer `type`."""

    parameter: int
    fact: str
    type: str = "none"


@record
class Group:
    """Variants of one key, warps and stages, with the conditions of each, in order."""

    key: int
    num_warps: int
    num_stages: int
    needs: tuple[int, ...]
    kernels: tuple[int, ...]


@record
class Launched:
    """A function of a binary, and how it is launched; variants share them.

    Attributes:
        scratch, alignment: bytes a block of the grid, and of what their address is a multiple.
        slots: (pass, index, source) of each `gm_slot`.
        maps: (source, rank, element size, element type, swizzle, padded, box) of each
            `gm_map_plan`.
    """

    arch: str
    binary: str
    symbol: str
    threads: int
    cluster: int
    shared: int
    scratch: int
    alignment: int
    cooperative: bool
    pdl: bool
    slots: tuple[tuple[str, int, int], ...]
    maps: tuple[tuple[Any, ...], ...]


@record
class Tables:
    """What one C function dispatches by."""

    fields: tuple[Field, ...]
    conditions: tuple[Condition, ...]
    groups: tuple[Group, ...]
    arch_shift: int

    @property
    def words(self) -> int:
        """Words of a mask."""
        return max(1, -(-len(self.conditions) // 64))


def _exact(value: Value) -> tuple[str, Value]:
    return type(value).__name__, value


def _distinct(values: Iterable[Value]) -> tuple[Value, ...]:
    return tuple({_exact(value): value for value in values}.values())


def architectures(manifest: Manifest) -> list[str]:
    """Architectures of an artifact, in the manifest's order."""
    found = list(dict.fromkeys(v.arch for kernel in manifest.kernels for v in kernel.variants))
    if len(found) > MAX_ARCHS:
        raise ArtifactError(
            f"the artifact {manifest.name!r} has {len(found)} architectures; C's tables take "
            f"{MAX_ARCHS}. Build two."
        )
    return found


def fields_of(entry: KernelEntry) -> tuple[Field, ...]:
    """The fields of a kernel: its type variables, then its constexprs."""
    found: list[Field] = []
    shift = 0
    carried = {p.type for p in entry.parameters if p.kind in ("pointer", "descriptor", "float")}
    columns = [  # a variable that only constexprs have is told by them
        (name, i, "variable", [v.types[i] for v in entry.variants] or list(types))
        for i, (name, types) in enumerate(entry.variables)
        if name in carried
    ]
    columns += [
        (p.name, i, p.type, [v.arguments[i].value for v in entry.variants])
        for i, p in enumerate(entry.parameters)
        if p.kind == "constexpr"
    ]
    for name, index, kind, values in columns:
        distinct = _distinct(values)
        bits = max(1, len(distinct).bit_length())  # all ones is none of them
        found.append(Field(name, index, kind, distinct, bits, shift))
        shift += bits
    if shift + ARCH_BITS > 64:
        raise ArtifactError(
            f"the types and constexprs of {entry.name!r} take {shift} bits to tell apart; a key "
            f"has {64 - ARCH_BITS}. Fix some constexprs, or build two artifacts."
        )
    return tuple(found)


def conditions_of(parameter: Parameter, index: int, argument: Argument) -> list[Condition]:
    """What a call must meet at a parameter for a variant."""
    if parameter.kind == "pointer":
        if argument.type == "constexpr":
            return [Condition(index, "GM_IS_NULL")]
        found = [Condition(index, "GM_NOT_NULL")] if parameter.optional else []
        return [*found, Condition(index, "GM_DIVISIBLE")] if argument.divisible else found
    if parameter.kind == "integer" and parameter.type != "bool":
        if argument.type == "constexpr":
            if argument.value != 1:
                raise ArtifactError(
                    f"a variant has {argument.value!r} for the integer {parameter.name!r}; only 1 "
                    "is compiled in. Make it a constexpr."
                )
            return [Condition(index, "GM_IS_ONE")]
        found = [Condition(index, "GM_MULTIPLE")] if argument.divisible else []
        fits = Condition(index, "GM_FITS", argument.type)
        return found if argument.type == "i64" else [*found, fits]
    return []


def tables_of(entry: KernelEntry, archs: list[str], kernels: dict[Launched, int]) -> Tables:
    """A kernel's tables. `kernels` numbers functions of the whole artifact, and grows.

    Raises:
        ArtifactError: the manifest asks for what C's tables do not have.
    """
    fields = fields_of(entry)
    shift = sum(field.bits for field in fields)
    needed = [
        [c for i, p in enumerate(entry.parameters) for c in conditions_of(p, i, v.arguments[i])]
        for v in entry.variants
    ]
    distinct = dict.fromkeys(c for conditions in needed for c in conditions)
    order = sorted(distinct, key=lambda c: (c.parameter, c.fact, c.type))
    bit = {condition: 1 << i for i, condition in enumerate(order)}
    groups: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for variant, conditions in zip(entry.variants, needed, strict=True):
        key = archs.index(variant.arch) << shift | _key(variant, fields)
        kernel = kernels.setdefault(launched(entry, variant), len(kernels))
        rows = groups.setdefault((key, variant.num_warps, variant.num_stages), [])
        rows.append((sum(bit[c] for c in conditions), kernel))
    made = [
        Group(*name, *(tuple(column) for column in zip(*rows, strict=True)))
        for name, rows in groups.items()
    ]
    made.sort(key=lambda group: group.key)  # stable: within a key, the manifest's order
    return Tables(fields, tuple(order), tuple(made), shift)


def _key(variant: Variant, fields: tuple[Field, ...]) -> int:
    return sum(
        field.placed(
            variant.types[field.index]
            if field.kind == "variable"
            else variant.arguments[field.index].value
        )
        for field in fields
    )


def launched(entry: KernelEntry, variant: Variant) -> Launched:
    """How a variant is launched.

    Raises:
        ArtifactError: C's tables cannot say it.
    """
    where = {parameter.name: i for i, parameter in enumerate(entry.parameters)}
    if variant.arch.startswith("gfx") and variant.cluster > 1:
        raise ArtifactError(
            f"{entry.name!r} has clusters of {variant.cluster} blocks on {variant.arch}; they are "
            "launched on NVIDIA's devices only. Compile it with `num_ctas=1`."
        )
    if len(variant.slots) > MAX_SLOTS or len(variant.descriptors) > MAX_DESCRIPTORS:
        raise ArtifactError(
            f"a binary of {entry.name!r} takes {len(variant.slots)} parameters and "
            f"{len(variant.descriptors)} descriptors; C's tables have {MAX_SLOTS} and "
            f"{MAX_DESCRIPTORS}. Give the kernel fewer."
        )
    return Launched(
        arch=variant.arch,
        binary=variant.binary,
        symbol=variant.symbol,
        threads=variant.threads,
        cluster=variant.cluster,
        shared=variant.usage.shared_bytes,
        scratch=variant.scratch_bytes,
        alignment=variant.scratch_align,
        cooperative=variant.cooperative,
        pdl=variant.pdl,
        slots=tuple(_slot(entry, variant, where, i) for i in range(len(variant.slots))),
        maps=tuple(_map(entry, where, descriptor) for descriptor in variant.descriptors),
    )


def _slot(
    entry: KernelEntry, variant: Variant, where: dict[str, int], number: int
) -> tuple[str, int, int]:
    slot = variant.slots[number]
    if slot.source in ("global_scratch", "profile_scratch"):
        return ("GM_SCRATCH" if slot.source == "global_scratch" else "GM_ZERO"), 0, 0
    if slot.source not in where:
        raise ArtifactError(
            f"a binary of {entry.name!r} takes {slot.source!r}, which is none of the kernel's "
            "parameters. Build the artifact again."
        )
    source = where[slot.source]
    parameter = entry.parameters[source]
    if parameter.kind == "descriptor":
        return (
            _tensor_pass(entry, variant, number),
            slot.index
            if slot.part != "map"
            else [d.source for d in variant.descriptors].index(slot.source),
            source,
        )
    if parameter.kind == "float" and slot.type in FLOAT_PASSES:
        return FLOAT_PASSES[slot.type], 0, source
    if parameter.kind in ("pointer", "integer") and slot.size <= 8:
        return "GM_VALUE", 0, source
    raise _mismatch(entry, variant, number)


def _tensor_pass(entry: KernelEntry, variant: Variant, number: int) -> str:
    slot = variant.slots[number]
    passes = {
        ("map", 128): "GM_MAP",
        ("shape", 4): "GM_SHAPE32",
        ("shape", 8): "GM_SHAPE64",
        ("stride", 8): "GM_STRIDE",
        ("value", 8): "GM_BASE",
        ("value", 1): "GM_ZERO",  # whether what lies outside reads as NaN: it reads as zero
    }
    rank = next(p.rank for p in entry.parameters if p.name == slot.source)
    if (slot.part, slot.size) not in passes or not 0 <= slot.index < max(1, rank):
        raise _mismatch(entry, variant, number)
    return passes[slot.part, slot.size]


def _mismatch(entry: KernelEntry, variant: Variant, number: int) -> ArtifactError:
    slot = variant.slots[number]
    return ArtifactError(
        f"a binary of {entry.name!r} takes {slot.source!r} ({slot.part}) as {slot.type} of "
        f"{slot.size} bytes, which is no way to pass it. Build the artifact again."
    )


def _map(entry: KernelEntry, where: dict[str, int], plan: Descriptor) -> tuple[Any, ...]:
    if len(plan.block) != entry.parameters[where[plan.source]].rank:
        raise ArtifactError(
            f"the descriptor {plan.source!r} of {entry.name!r} has "
            f"{entry.parameters[where[plan.source]].rank} dimensions, and its block {plan.block}. "
            "Build the artifact again."
        )
    if not 1 <= len(plan.block) <= MAX_RANK:
        raise ArtifactError(
            f"the descriptor {plan.source!r} has {len(plan.block)} dimensions; the hardware takes "
            f"1 to {MAX_RANK}. Merge some."
        )
    box = [*reversed(plan.block), *[0] * (MAX_RANK - len(plan.block))]
    return (
        where[plan.source],
        len(plan.block),
        plan.element_size,
        plan.element_type,
        plan.swizzle,
        int(plan.fp4_padded),
        tuple(box),
    )


def element_code(name: Value) -> int:
    """The code of an element type's name.

    Raises:
        ArtifactError: it has none.
    """
    if name is None:
        return 0
    if name not in ELEMENTS:
        raise ArtifactError(
            f"there is no element type {name!r} in C's interface; it has {', '.join(ELEMENTS)}."
        )
    return ELEMENTS[name]
