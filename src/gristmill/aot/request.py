"""A combination as the compiler takes it, in JSON: what crosses to the compile server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import triton.language as tl

from gristmill.aot.expand import Combination
from gristmill.aot.manifest import Argument, Parameter
from gristmill.aot.signature import Declared
from gristmill.compile.executor import STATED_OPTIONS

DIVISIBLE = ["tt.divisibility", 16]
SMALL = ["tt.pointer_range", 32]


def request(
    declarations: Sequence[Declared], parameters: Sequence[Parameter], one: Combination
) -> dict[str, Any]:
    """What to compile.

    Two combinations with equal requests have the same binary.
    """
    known = {p.name: a for p, a in zip(parameters, one.arguments, strict=True)}
    kinds = {p.name: p.type for p in parameters if p.kind == "constexpr"}
    options = {"num_warps": one.num_warps, "num_stages": one.num_stages, **one.options}
    signature, constexprs, attributes = {}, [], []
    for index, parameter in enumerate(declarations):
        name = parameter.name
        argument = known.get(name)
        if argument is None:  # a constexpr that is a compile option too
            argument = Argument("constexpr", value=options.get(name))
        signature[name] = argument.type
        if argument.type == "constexpr":
            is_type = kinds.get(name) == "type" and argument.value is not None
            constexprs.append([index, "type" if is_type else "value", argument.value])
            continue
        small = argument.small and one.arch.startswith("gfx")
        found = [DIVISIBLE] * argument.divisible + [SMALL] * small
        if found:
            attributes.append([index, found])
    return {
        "arch": one.arch,
        "signature": signature,
        "constexprs": constexprs,
        "attributes": attributes,
        "options": {**STATED_OPTIONS, **options},
        "parameters": [dataclasses.asdict(p) for p in parameters],  # type: ignore[arg-type]
        "arguments": [dataclasses.asdict(a) for a in one.arguments],  # type: ignore[arg-type]
    }


def compile_arguments(asked: Mapping[str, Any]) -> tuple[dict[str, str], dict, dict]:
    """The signature, constexprs and attributes that Triton's `ASTSource` takes."""
    constexprs = {
        (index,): language_type(value) if kind == "type" else value
        for index, kind, value in asked["constexprs"]
    }
    attributes = {(index,): found for index, found in asked["attributes"]}
    return dict(asked["signature"]), constexprs, attributes


def language_type(name: str) -> tl.dtype:
    """The dtype of Triton's language that an element type is."""
    if name == "u1":
        return tl.int1
    if name[0] in "iu":
        return tl.dtype(f"{'u' * (name[0] == 'u')}int{name[1:]}")
    return tl.dtype(name)
