"""The nouns of an artifact, and its `manifest.json`: what was compiled, from what, by which tools.

The compiler makes a `Manifest`; the writers of C, of the Python module and of the wheel read
nothing else, and neither do `inspect`, `verify`, `diff` and `load`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from gristmill.record import record

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"

Kind = Literal["pointer", "descriptor", "integer", "float", "constexpr"]
Value = bool | int | float | str | None


@record
class Parameter:
    """A parameter of the kernel, in the kernel's order: what a caller passes.

    Attributes:
        name: the kernel's name for it.
        kind: `pointer`; `descriptor` (a host-made TMA descriptor); `integer`; `float`; `constexpr`.
        type: of a pointer, a descriptor and a float: a Triton element type (`fp16`, `fp8e4nv`,
            `i32`) or the name of a type variable. Of an integer: `int` (32 bits where the value
            fits and such a variant exists, else 64). Of a constexpr: `int`, `bool`, `float`, `str`,
            or `type` (a Triton element type, passed as its code).
        optional: a pointer that may be null (`None` in Triton, which compiles another variant).
        rank: of a descriptor: dimensions of the tensor.
    """

    name: str
    kind: Kind
    type: str
    optional: bool = False
    rank: int = 0


@record
class Argument:
    """What one variant was compiled for at one parameter.

    Attributes:
        type: Triton's signature type: `*fp16`, `i32`, `i64`, `fp32`, `tensordesc<fp16[128,64]>`;
            `constexpr` for what is no argument of the binary: constexprs, integers that are one
            (`value` 1), null pointers (`value` None).
        divisible: the address or the integer is a multiple of 16.
        value: where `type` is `constexpr`: the value compiled in (a type by its name).
        small: AMD's `S`: the tensor has at most 2 GiB (`tt.pointer_range` 32).
    """

    type: str
    divisible: bool = False
    value: Value = None
    small: bool = False


@record
class Slot:
    """A parameter of the binary, in order: how its bytes are passed.

    Attributes:
        source: the parameter's name; `global_scratch` or `profile_scratch` for the last two.
        part: `value`; of a descriptor: `map` (128 bytes of CUtensorMap), `shape` or `stride`.
        index: of a `shape` or `stride`: the dimension.
        type: `pointer`, `i1`, `i8`, ... `i64`, `fp16`, `bf16`, `fp32`, `fp64` or `map`.
        size: bytes, as the binary declares it.
    """

    source: str
    type: str
    size: int
    part: Literal["value", "map", "shape", "stride"] = "value"
    index: int = 0


@record
class Descriptor:
    """How a host-made TMA descriptor is encoded for a variant (cuTensorMapEncodeTiled's terms).

    Attributes:
        source: the parameter.
        block: the box, innermost last; the compiler may have shrunk what was asked for.
        element_size: bytes. `element_type`, `swizzle`: CUDA's enumeration values.
        fp4_padded: two 4-bit values a byte, in padded rows.
    """

    source: str
    block: tuple[int, ...]
    element_size: int
    element_type: int
    swizzle: int
    fp4_padded: bool = False


@record
class Usage:
    """What the compiler says of a binary. Registers and spilled bytes are of a thread; `None` where
    the target has no disassembler at hand."""

    registers: int | None
    spill_bytes: int | None
    shared_bytes: int
    size_bytes: int


@record
class Variant:
    """A kernel compiled for one architecture and one specialisation.

    Attributes:
        arch: `sm_90`, `gfx942`.
        types: of each type variable, its element type, in the kernel's order of variables.
        arguments: one a parameter, in order.
        num_warps, num_stages: as asked for: what a caller selects by.
        options: further compiler options, by name.
        binary: the SHA-256 of the binary, which names its file: `kernels/<binary>.<suffix>`.
        symbol: the function's name in it.
        threads: threads of a block: warp size times the binary's own number of warps.
        cluster: blocks of a cluster (`num_ctas`), by which the grid's x is multiplied.
        cooperative, pdl: launch attributes (programmatic dependent launch).
        scratch_bytes, scratch_align: global scratch memory a block of the grid.
        slots: the binary's parameters.
        descriptors: one a descriptor parameter that is encoded on the host.
    """

    arch: str
    types: tuple[str, ...]
    arguments: tuple[Argument, ...]
    num_warps: int
    num_stages: int
    options: dict[str, Value]
    binary: str
    symbol: str
    threads: int
    cluster: int
    cooperative: bool
    pdl: bool
    scratch_bytes: int
    scratch_align: int
    slots: tuple[Slot, ...]
    usage: Usage
    descriptors: tuple[Descriptor, ...] = ()


@record
class Choice:
    """A tuned choice: where every condition holds, these constexprs, warps and stages are used.

    Attributes:
        types: of each type variable, its element type; empty: any.
        limits: (integer parameter, smallest, largest) that a call's value lies in, both included.
        arch: the architecture that it was measured on.
        constexprs: values by name. `num_warps`, `num_stages`: of the variant.
    """

    arch: str
    types: tuple[str, ...]
    limits: tuple[tuple[str, int, int], ...]
    constexprs: dict[str, Value]
    num_warps: int
    num_stages: int


@record
class KernelEntry:
    """A kernel of an artifact.

    Attributes:
        name: the C function's name.
        variables: type variables, in order, with the element types that each was compiled for.
        parameters: what a caller passes, before num_warps, num_stages, the grid and the stream.
        variants: for each (arch, types, constexprs, warps, stages), most specialised first.
        grid: the grid's expressions of the parameters, in C's syntax with `cdiv`; empty: callers
            pass one.
        choices: tuned choices; the first whose conditions hold.
        source: the SHA-256 of the kernel's source and of the device functions that it calls.
    """

    name: str
    variables: tuple[tuple[str, tuple[str, ...]], ...]
    parameters: tuple[Parameter, ...]
    variants: tuple[Variant, ...]
    source: str
    grid: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()


@record
class Manifest:
    """An artifact: `manifest.json`.

    Attributes:
        name: the artifact's name: its folder's, and the prefix of its files.
        kernels: what it has.
        tools: versions of what made it (`gristmill`, `triton`, `ptxas`).
        files: SHA-256 by path, of every other file of the artifact.
    """

    name: str
    kernels: tuple[KernelEntry, ...]
    tools: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION
