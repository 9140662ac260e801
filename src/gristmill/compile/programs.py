"""Bound calls as programs of the C module (`native/calls.c`): what a launch passes, laid out in
bytes as the kernel reads them."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Sequence
from typing import Any

import torch
from triton import knobs
from triton.compiler import CompiledKernel

from gristmill.core.launch import Launch, TensorMap
from gristmill.native.calls import calls
from gristmill.record import record

DRIVER = "libcuda.so.1"
# struct's codes by Triton's types. A bf16 scalar is cut off, not rounded: so the JIT passes it.
FORMATS = {
    "i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q",
    "u1": "B", "u8": "B", "u16": "H", "u32": "I", "u64": "Q",
    "fp16": "e", "fp32": "f", "f32": "f", "fp64": "d",
}  # fmt: skip
SHAPE, STRIDE = "i32", "i64"  # how a descriptor's sizes follow it
MAP_BYTES, MAP_ALIGN, POINTER_BYTES = 128, 64, 8
PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.[busf](\d+)[^,\[]*?(?:\[(\d+)\])?\s*[,)]")
MAX_CLUSTER = 8  # larger ones need an attribute of the function


@record
class Maker:
    """How a bound call makes a tensor: `function(*values, **keywords)`, the op's argument `source`
    (-1: none) in the first place."""

    function: Any
    values: tuple[Any, ...]
    keywords: tuple[str, ...] = ()
    source: int = -1


class Unfit(Exception):
    """A launch that a program cannot hold, with the reason."""


@functools.cache
def ready() -> Any:
    """The C module with CUDA's driver open, or `None`."""
    module = calls()
    if module is None or torch.version.hip is not None:
        return None
    runtime = knobs.runtime
    try:
        module.open_driver(DRIVER, (runtime, "launch_enter_hook", runtime, "launch_exit_hook"))
    except OSError:
        return None
    return module


def program(
    arguments: int,
    outputs: int,
    makers: Sequence[Maker],
    launches: Sequence[tuple[Launch, CompiledKernel]],
    slots: Sequence[torch.Tensor | None],
    given: int = 0,
) -> Any:
    """A call that makes tensors and launches kernels, as a program; `None` where there can be none.

    Args:
        arguments: of the op. outputs: how many of what `makers` make are returned.
        launches: each with its kernel, loaded on the device that is current in calls.
        slots: the tensors that launches refer to: one an argument of the op (`None` where it is no
            tensor), then what the makers make.
        given: how many of the last arguments are outputs that the caller gives, and gets back.
    """
    module = ready()
    if module is None:
        return None
    made = tuple((m.function, m.values, m.keywords or None, m.source) for m in makers)
    try:
        packed = tuple(_packed(launch, kernel, slots) for launch, kernel in launches)
        kernels = tuple(kernel for _, kernel in launches)
        return module.Program(arguments, outputs, made, packed, kernels, given)
    except (Unfit, ValueError, OverflowError, struct.error):
        return None


class _Image:
    """The bytes of a kernel's parameters, aligned as C aligns them."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.offsets: list[int] = []
        self.sizes: list[int] = []

    def add(self, content: bytes, align: int) -> int:
        self.data += bytes(-len(self.data) % align)
        offset = len(self.data)
        self.data += content
        self.offsets.append(offset)
        self.sizes.append(len(content))
        return offset

    def scalar(self, kind: str, value: Any) -> None:
        content = _scalar(kind, value)
        self.add(content, len(content))


def _scalar(kind: str, value: Any) -> bytes:
    if kind == "bf16":
        return struct.pack("<f", value)[2:]
    if kind not in FORMATS:
        raise Unfit(f"a parameter of type {kind}")
    return struct.pack("<" + FORMATS[kind], value)


def _packed(
    launch: Launch, kernel: CompiledKernel, slots: Sequence[torch.Tensor | None]
) -> tuple[Any, ...]:
    metadata: Any = kernel.metadata
    scratch = metadata.global_scratch_size or metadata.profile_scratch_size
    if scratch or metadata.num_ctas > MAX_CLUSTER:
        raise Unfit("scratch memory, or a cluster of a size that is not portable")
    image, patches, maps = _Image(), [], []
    described = iter(getattr(metadata, "tensordesc_meta", None) or ())
    types: Any = kernel.src.signature  # pyright: ignore[reportAttributeAccessIssue]
    for name, arg in zip(launch.kernel.arg_names, launch.args, strict=False):
        kind = types[name]
        if isinstance(arg, TensorMap):
            terms = next(described, None)
            if terms is None:
                raise Unfit("a descriptor that the kernel takes apart")
            maps.append(_map(image, arg, terms, _slot(slots, arg.tensor)))
        elif kind == "constexpr":
            continue
        elif not isinstance(kind, str):
            raise Unfit("a tuple")
        elif isinstance(arg, torch.Tensor):
            offset = image.add(bytes(POINTER_BYTES), POINTER_BYTES)
            patches.append((offset, _slot(slots, arg)))
        elif kind.startswith("*"):
            image.add(bytes(POINTER_BYTES), POINTER_BYTES)
        else:
            image.scalar(kind, arg)
    for _ in ("global scratch", "profile scratch"):
        image.add(bytes(POINTER_BYTES), POINTER_BYTES)
    ptx = kernel.asm.get("ptx")  # a setting of Triton's keeps binaries alone
    if ptx is None or image.sizes != declared_sizes(ptx):
        raise Unfit("other parameters than the binary has")
    return (
        kernel.function,
        (*launch.grid, 1, 1)[:3],
        32 * metadata.num_warps,
        metadata.shared,
        metadata.num_ctas,
        metadata.launch_cooperative_grid,
        metadata.launch_pdl,
        bytes(image.data),
        tuple(image.offsets),
        tuple(patches),
        tuple(maps),
    )


def _map(image: _Image, arg: TensorMap, terms: Any, slot: int) -> tuple[Any, ...]:
    """A descriptor's place in the image, and its terms in the driver's order, innermost first."""
    from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST

    shape, size = list(arg.shape), terms["elem_size"]
    if terms["fp4_padded"]:
        shape[-1] *= 2
    offset = image.add(bytes(MAP_BYTES), MAP_ALIGN)
    for n in shape:
        image.scalar(SHAPE, n)
    for n in arg.strides:
        image.scalar(STRIDE, n)
    inner = [size * n for n in arg.strides[:-1]][::-1]
    strides = (*inner, shape[0] * (inner[-1] if inner else size))
    kind = TMA_DTYPE_DEVICE_TO_HOST[terms["elem_type"]]
    box = tuple(terms["block_size"])[::-1]
    return (offset, slot, kind, terms["swizzle"], 0, box, tuple(shape[::-1]), strides)


def _slot(slots: Sequence[torch.Tensor | None], tensor: torch.Tensor) -> int:
    for index, candidate in enumerate(slots):
        if candidate is tensor:
            return index
    raise Unfit("a tensor that is neither an argument, an output nor workspace")


@functools.lru_cache(maxsize=512)
def declared_sizes(ptx: str) -> list[int]:
    """The size in bytes of each parameter of the kernel in this PTX."""
    start = ptx.index(".entry")
    head = ptx[start : ptx.index("{", start)]
    return [int(bits) // 8 * int(count or 1) for bits, count in PARAMETER.findall(head)]
