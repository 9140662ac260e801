"""Artifacts of kernels as Triton compiled them, for the tests that run them on a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import re

import aot_c_cases as cases
import aot_c_process as process
from gristmill.aot.c_artifact import write
from gristmill.aot.manifest import (
    Argument,
    Descriptor,
    KernelEntry,
    Manifest,
    Parameter,
    Slot,
    Usage,
    Variant,
)


def entry_of(name, compiled, parameters, arch):
    """A kernel with one variant: a `CompiledKernel`, as Triton specialised it."""
    source, metadata = compiled.src, compiled.metadata
    arguments = []
    for i, parameter in enumerate(parameters):
        type_ = source.signature[parameter.name]
        if type_ == "constexpr":
            arguments.append(Argument("constexpr", value=source.constants[(i,)]))
        else:
            said = source.attrs.get((i,), [])
            arguments.append(Argument(type_, ["tt.divisibility", 16] in said))
    binary = compiled.asm["cubin"]
    variant = Variant(
        arch=arch,
        types=(),
        arguments=tuple(arguments),
        num_warps=metadata.num_warps,
        num_stages=metadata.num_stages,
        options={},
        binary=hashlib.sha256(binary).hexdigest(),
        symbol=metadata.name,
        threads=32 * metadata.num_warps,
        cluster=metadata.num_ctas,
        cooperative=metadata.launch_cooperative_grid,
        pdl=metadata.launch_pdl,
        scratch_bytes=metadata.global_scratch_size,
        scratch_align=metadata.global_scratch_align,
        slots=tuple(_slots(parameters, arguments)),
        usage=Usage(None, None, metadata.shared, len(binary)),
        descriptors=tuple(_descriptors(parameters, metadata)),
    )
    return KernelEntry(name, (), tuple(parameters), (variant,), "0" * 64), binary


def _slots(parameters, arguments):
    for parameter, argument in zip(parameters, arguments, strict=True):
        if parameter.kind != "descriptor":
            yield from cases.slots_of([parameter], [argument])[:-2]
            continue
        yield Slot(parameter.name, "map", 128, "map")
        yield from (Slot(parameter.name, "i32", 4, "shape", i) for i in range(parameter.rank))
        yield from (Slot(parameter.name, "i64", 8, "stride", i) for i in range(parameter.rank))
    yield from cases.SCRATCH


def _descriptors(parameters, metadata):
    from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST

    tensors = [parameter for parameter in parameters if parameter.kind == "descriptor"]
    for parameter, plan in zip(tensors, metadata.tensordesc_meta or [], strict=True):
        yield Descriptor(
            parameter.name,
            tuple(plan["block_size"]),
            plan["elem_size"],
            TMA_DTYPE_DEVICE_TO_HOST[plan["elem_type"]],
            plan["swizzle"],
            plan["fp4_padded"],
        )


def parameters_of(compiled, kinds):
    """Parameters as the compiled source has them; `kinds` says what its types do not."""
    made = []
    for name, type_ in compiled.src.signature.items():
        if name in kinds:
            made.append(Parameter(name, *kinds[name]))
        elif type_.startswith("tensordesc"):
            element, shape = re.fullmatch(r"tensordesc<(\w+)\[([\d, ]+)\].*", type_).groups()
            made.append(Parameter(name, "descriptor", element, rank=shape.count(",") + 1))
        elif type_.startswith("*"):
            made.append(Parameter(name, "pointer", type_[1:]))
        else:
            kind = "float" if type_.startswith(("fp", "bf")) else "integer"
            made.append(Parameter(name, kind, type_ if kind == "float" else "int"))
    return made


def build(folder, name, kernels, arch):
    """A shared library of (C name, `CompiledKernel`, kinds of parameters)."""
    (folder / "kernels").mkdir(parents=True, exist_ok=True)
    entries = []
    for kernel, compiled, kinds in kernels:
        entry, binary = entry_of(kernel, compiled, parameters_of(compiled, kinds), arch)
        digest = entry.variants[0].binary
        (folder / "kernels" / f"{digest}.cubin").write_bytes(binary)
        entries.append(entry)
    write(Manifest(name, tuple(entries), {}), folder)
    return cases.shared_library(folder, name)


class Real:
    """An artifact in this process, over the real driver."""

    def __init__(self, path, name):
        self.name, self.c = name, ctypes.CDLL(str(path))
        getattr(self.c, f"{name}_last_error").restype = ctypes.c_char_p

    @property
    def error(self):
        return getattr(self.c, f"{self.name}_last_error")().decode()

    def call(self, kernel, *args, grid, stream, warps=0):
        """A call on a torch stream: tensors are pointers, or descriptors in a `Tensor`."""
        given = [self._value(a) for a in args]
        more = [ctypes.c_int32(warps), ctypes.c_int32(0), *map(ctypes.c_int64, grid)]
        status = getattr(self.c, kernel)(*given, *more, ctypes.c_void_p(stream.cuda_stream))
        assert status == 0, self.error

    @staticmethod
    def _value(value):
        if isinstance(value, int):
            return ctypes.c_int64(value)
        if isinstance(value, float):
            return ctypes.c_double(value)
        if isinstance(value, process.Tensor):
            return value
        return ctypes.c_void_p(value.data_ptr())


def tensor(value, dtype):
    """A torch tensor as a descriptor; keep what is returned for as long as it is used."""
    shape = (ctypes.c_int64 * value.dim())(*value.shape)
    strides = (ctypes.c_int64 * value.dim())(*value.stride())
    addresses = ctypes.addressof(shape), ctypes.addressof(strides)
    made = process.Tensor(value.data_ptr(), process.ELEMENTS[dtype], *addresses)
    made.kept = shape, strides
    return made
