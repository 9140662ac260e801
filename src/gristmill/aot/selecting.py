"""Which variant a call takes: the rule that every dispatcher follows, in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gristmill.aot.elements import limits, plain
from gristmill.aot.manifest import Argument, Choice, KernelEntry, Parameter, Variant
from gristmill.errors import ArtifactError

ALIGNMENT = 16


def select(
    entry: KernelEntry,
    arch: str,
    types: Mapping[str, Any],
    values: Mapping[str, Any],
    num_warps: int = 0,
    num_stages: int = 0,
) -> Variant:
    """The variant that a call takes: the first of the manifest's whose conditions all hold.

    Args:
        arch: what the call's device is (`sm_86`, `gfx942`).
        types: of each type variable, the call's element type.
        values: of each parameter: of a pointer and a descriptor the address (`None`: null), of
            numbers and constexprs the value; a constexpr that a tuned choice fills in may be left
            out, with `num_warps` and `num_stages` 0.
        num_warps, num_stages: which to take; 0: those of the first tuned choice that holds and has
            a variant for the call, else of the first variant that fits.

    Raises:
        ArtifactError: no variant fits; the message has the nearest one and the condition that
            fails first.
    """
    built = built_for(arch, entry.variants)
    if built is None:
        known = ", ".join(dict.fromkeys(v.arch for v in entry.variants))
        raise ArtifactError(
            f"{entry.name} has no code for {arch}; it was built for {known}. Build it for {arch}."
        )
    names = {name: plain(value) for name, value in types.items()}
    if not (num_warps and num_stages):
        asked = [
            c
            for c in entry.choices
            if num_warps in (0, c.num_warps) and num_stages in (0, c.num_stages)
        ]
        row = next((c for c in asked if _holds(entry, c, built, names, values)), None)
        if row is not None:
            chosen = {**values, **row.constexprs}
            try:
                return _first(entry, built, names, chosen, row.num_warps, row.num_stages)
            except ArtifactError:
                if not set(row.constexprs) <= set(values):  # nothing else says what they are
                    raise
    return _first(entry, built, names, values, num_warps, num_stages)


def built_for(arch: str, variants: Sequence[Variant]) -> str | None:
    """The architecture whose binaries run on `arch`: itself, or below sm_90 the nearest earlier one
    of the same major version."""
    archs = {variant.arch for variant in variants}
    if arch in archs:
        return arch
    capability = arch.removeprefix("sm_")
    if not arch.startswith("sm_") or not capability.isdigit() or int(capability) >= 90:
        return None
    earlier = [
        int(other[3:])
        for other in archs
        if other.startswith("sm_") and int(other[3:]) // 10 == int(capability) // 10
    ]
    fitting = [other for other in earlier if other <= int(capability)]
    return f"sm_{max(fitting)}" if fitting else None


def _holds(
    entry: KernelEntry,
    row: Choice,
    arch: str,
    types: Mapping[str, str],
    values: Mapping[str, Any],
) -> bool:
    """Whether a tuned choice is for a call."""
    named = tuple(types.get(name) for name, _ in entry.variables)
    given = {name: plain(value) for name, value in values.items()}
    return (
        row.arch == arch
        and (not row.types or row.types == named)
        and all(n in values and low <= values[n] <= high for n, low, high in row.limits)
        and all(_equal(given[n], v) for n, v in row.constexprs.items() if n in given)
    )


def _first(
    entry: KernelEntry,
    arch: str,
    types: Mapping[str, str],
    values: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
) -> Variant:
    nearest: list[str] | None = None
    for variant in entry.variants:
        if variant.arch != arch:
            continue
        failing = list(_failing(entry, variant, types, values, num_warps, num_stages))
        if not failing:
            return variant
        if nearest is None or len(failing) < len(nearest):
            nearest = failing
    assert nearest is not None
    raise ArtifactError(
        f"no variant of {entry.name} for {arch} takes this call; the nearest one needs "
        f"{nearest[0]}. Build it for such calls, or pass what it needs."
    )


def _failing(
    entry: KernelEntry,
    variant: Variant,
    types: Mapping[str, str],
    values: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
) -> Iterator[str]:
    """The conditions of a variant that a call does not meet."""
    for (name, _), wanted in zip(entry.variables, variant.types, strict=True):
        if types.get(name) != wanted:
            of = named([p.name for p in entry.parameters if p.type == name])
            yield f"`{name}`, the type of {of}, to be {wanted}, not {types.get(name)}"
    for parameter, argument in zip(entry.parameters, variant.arguments, strict=True):
        if parameter.name not in values:
            yield f"`{parameter.name}`, which is missing"
            continue
        wanted = unmet(parameter, argument, values[parameter.name])
        if wanted:
            yield f"`{parameter.name}` to be {wanted}, not {values[parameter.name]!r}"
    for name, asked in (("num_warps", num_warps), ("num_stages", num_stages)):
        if asked and getattr(variant, name) != asked:
            yield f"`{name}` to be {getattr(variant, name)}, not {asked}"


def named(names: Sequence[str]) -> str:
    """Parameters in a message: "`x`, `y` and `out`", at most four of them."""
    shown = [f"`{name}`" for name in names[:4]]
    if len(names) > len(shown):
        shown.append(f"{len(names) - len(shown)} more")
    *first, last = shown or ["nothing"]
    return f"{', '.join(first)} and {last}" if first else last


def unmet(parameter: Parameter, argument: Argument, value: Any) -> str:
    """What a variant wants of an argument that it does not meet, in words; else nothing."""
    if parameter.kind == "constexpr":
        return "" if _equal(plain(value), argument.value) else repr(argument.value)
    if parameter.kind == "pointer":
        return _unmet_pointer(parameter, argument, value)
    if parameter.kind != "integer" or argument.type == "u1":
        return ""
    if argument.type == "constexpr":
        return "" if value == argument.value else repr(argument.value)
    low, high = limits(argument.type)
    if not low <= value <= high:
        return f"from {low} to {high}"
    return "a multiple of 16" if argument.divisible and value % ALIGNMENT else ""


def _unmet_pointer(parameter: Parameter, argument: Argument, value: int | None) -> str:
    if argument.type == "constexpr":
        return "null" if value else ""
    if parameter.optional and not value:
        return "an address"
    return "16-byte aligned" if argument.divisible and (value or 0) % ALIGNMENT else ""


def _equal(a: Any, b: Any) -> bool:
    """Equal and of one type, but for a float that is given as a whole number."""
    return a == b and (type(a) is type(b) or (type(b) is float and type(a) is int))
