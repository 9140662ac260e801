"""How a binary takes its arguments: what the signature says, held against what the compiler's
assembly declares."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST

from gristmill.aot.elements import ELEMENT_BYTES
from gristmill.aot.manifest import Argument, Descriptor, Parameter, Slot
from gristmill.errors import CompileError

MAP_BYTES = 128  # a CUtensorMap
SCRATCH = ("global_scratch", "profile_scratch")
PTX_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}
_PTX_ENTRY = re.compile(r"\.entry\s+\w+\s*\((.*?)\)\s*[.{\n]", re.DOTALL)
_PTX_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.[busf](\d+)[^,\[]*?(?:\[(\d+)\])?\s*(?:,|$)"
)
_AMD_ARGS = re.compile(r"^\s*(?:- )?\.args:\s*\n(.*?)^\s{0,4}\.\w+:", re.DOTALL | re.MULTILINE)


def slots(
    parameters: Sequence[Parameter], arguments: Sequence[Argument], flags: int | None = None
) -> tuple[Slot, ...]:
    """What the launcher passes for a variant, in order.

    Args:
        flags: `None` where descriptors are encoded for TMA. Elsewhere a descriptor is a pointer
            with its shape and strides, and this many bytes that say how it is padded.
    """
    found: list[Slot] = []
    for parameter, argument in zip(parameters, arguments, strict=True):
        name, type_ = parameter.name, argument.type
        if type_ == "constexpr":
            continue
        if parameter.kind == "pointer":
            found.append(Slot(name, "pointer", 8))
        elif parameter.kind == "descriptor":
            found += _descriptor_slots(name, parameter.rank, flags)
        else:
            unsigned = type_.startswith("u")
            found.append(Slot(name, f"i{type_[1:]}" if unsigned else type_, ELEMENT_BYTES[type_]))
    return (*found, *(Slot(name, "pointer", 8) for name in SCRATCH))


def _descriptor_slots(name: str, rank: int, flags: int | None) -> list[Slot]:
    strides = [Slot(name, "i64", 8, "stride", d) for d in range(rank)]
    passed = [Slot(name, "i32", 4, "shape", d) for d in range(rank)] + strides
    if flags is None:
        return [Slot(name, "map", MAP_BYTES, "map"), *passed]
    shape = [Slot(name, "i64", 8, "shape", d) for d in range(rank)]
    padding = [Slot(name, "i1", 1) for _ in range(flags)]
    return [Slot(name, "pointer", 8), *shape, *strides, *padding, *passed]


def declared_bytes(assembly: Mapping[str, Any]) -> list[int]:
    """The size of each parameter that a kernel's assembly declares.

    Raises:
        CompileError: it declares no kernel in a way that is known here.
    """
    if "ptx" in assembly:
        entry = _PTX_ENTRY.search(assembly["ptx"])
        if entry is not None:
            return [_ptx_bytes(line) for line in entry[1].splitlines() if ".param" in line]
    elif "amdgcn" in assembly:
        block = _AMD_ARGS.search(assembly["amdgcn"])
        if block is not None:
            return _kernarg_bytes(block[1])
    raise CompileError(
        "the compiler's assembly declares no parameters that gristmill understands; this version "
        "of Triton is too new for it"
    )


def _ptx_bytes(line: str) -> int:
    found = _PTX_PARAM.search(line.strip())
    if found is None or found[1] not in PTX_BYTES:
        raise CompileError(f"the PTX declares a parameter of unknown size: {line.strip()!r}")
    return PTX_BYTES[found[1]] * int(found[2] or 1)


def _kernarg_bytes(block: str) -> list[int]:
    """Sizes of the explicit arguments of a code object's metadata."""
    sizes = []
    for one in re.split(r"^\s*- ", block, flags=re.MULTILINE)[1:]:
        size = re.search(r"\.size:\s*(\d+)", one)
        kind = re.search(r"\.value_kind:\s*(\w+)", one)
        if size is None or kind is None:
            raise CompileError(f"the code object's metadata has an argument like {one.strip()!r}")
        if not kind[1].startswith("hidden"):
            sizes.append(int(size[1]))
    return sizes


def binary_slots(
    parameters: Sequence[Parameter],
    arguments: Sequence[Argument],
    assembly: Mapping[str, Any],
    encoded: bool,
) -> tuple[Slot, ...]:
    """What a binary takes; `encoded`: its descriptors are encoded for TMA.

    Raises:
        CompileError: it takes something else than what its signature says.
    """
    expected = slots(parameters, arguments, None if encoded else 1)
    sizes = declared_bytes(assembly)
    if not encoded and any(p.kind == "descriptor" for p in parameters):
        later = slots(parameters, arguments, 2)  # Triton 3.7 added one
        expected = later if [s.size for s in later] == sizes else expected
    check(expected, sizes)
    return expected


def check(expected: Sequence[Slot], sizes: Sequence[int]) -> None:
    """The sizes that a binary declares are those that the launcher passes.

    Raises:
        CompileError: they are not; the message names the first difference.
    """
    for index, (slot, size) in enumerate(zip(expected, sizes, strict=False)):
        if slot.size != size:
            raise CompileError(
                f"parameter {index} of the binary has {size} bytes; `{slot.source}` ({slot.part}) "
                f"is passed in {slot.size}. This version of Triton passes it in another way"
            )
    if len(sizes) != len(expected):
        raise CompileError(
            f"the binary has {len(sizes)} parameters; its signature has {len(expected)}, scratch "
            "memory included. This version of Triton passes arguments in another way"
        )


def descriptors(parameters: Sequence[Parameter], metadata: Any) -> tuple[Descriptor, ...]:
    """How the host encodes each descriptor of a binary, from the compiler's metadata; nothing where
    the target has no TMA.

    Raises:
        CompileError: the compiler says nothing of one, or wants an encoding that is not known here.
    """
    names = [p.name for p in parameters if p.kind == "descriptor"]
    said = list(getattr(metadata, "tensordesc_meta", None) or ())
    if not said:
        return ()
    if len(said) != len(names):
        raise CompileError(
            f"the compiler encodes {len(said)} of the {len(names)} descriptors of the kernel"
        )
    found = []
    for name, one in zip(names, said, strict=True):
        if one.get("is_im2col"):
            raise CompileError(f"the descriptor `{name}` is of im2col mode; tiled mode is known")
        found.append(
            Descriptor(
                name,
                tuple(one["block_size"]),
                one["elem_size"],
                TMA_DTYPE_DEVICE_TO_HOST[one["elem_type"]],
                one["swizzle"],
                bool(one["fp4_padded"]),
            )
        )
    return tuple(found)
