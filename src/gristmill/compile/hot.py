"""The hot path of a launch: a function generated for one loaded kernel, from addresses to the
driver.

Generated, so that no call asks of each argument whether it is a tensor, and which one, and copies a
list; docs/performance/dispatch.md has the host time with and without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton import knobs
from triton.compiler import CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

from gristmill.core.launch import Launch, TensorMap
from gristmill.errors import CompileError

MAX_DESCRIPTORS = 64  # addresses remembered an argument: a caching allocator cycles through few

SOURCE = """
def launch({slots}):
    if getattr(runtime.launch_enter_hook, "calls", 1) or getattr(runtime.launch_exit_hook, "calls",
    1):
        return with_hooks(stream_of(index), [{args}])
    {run}{args})
"""
DIRECT = (
    "run(grid_x, grid_y, grid_z, stream_of(index), function, cooperative, pdl, None, None, "
    "packed, None, None, None, "
)
PUBLIC = "run(grid_x, grid_y, grid_z, stream_of(index), function, packed, None, None, None, "


def bind_launch(
    launch: Launch, kernel: CompiledKernel, slots: Sequence[torch.Tensor], device: torch.device
) -> Callable[..., None]:
    """A function that launches `kernel` as `launch` does, for other addresses of the same tensors.

    `slots` are the tensors that the launch refers to (none is kept alive); the function takes their
    new `data_ptr()`s in that order, as positional arguments. It is valid for tensors with the same
    shapes, strides, dtypes, device and alignment, and expects `device` to be the current one.
    """
    names: dict[str, Any] = {}
    args: list[str] = []
    for position, arg in enumerate(launch.args):
        if isinstance(arg, TensorMap):
            names[f"describe_{position}"] = _describer(arg)
            args.append(f"describe_{position}(p{_slot(slots, arg.tensor)})")
        elif isinstance(arg, torch.Tensor):
            args.append(f"p{_slot(slots, arg)}")
        else:
            names[f"c{position}"] = arg
            args.append(f"c{position}")
    for position in range(len(launch.args), len(launch.kernel.arg_names)):
        names[f"c{position}"] = launch.constexprs.get(launch.kernel.arg_names[position])
        args.append(f"c{position}")
    grid = (*launch.grid, 1, 1)[:3]
    run: Any = kernel.run
    function, packed = kernel.function, kernel.packed_metadata

    def with_hooks(stream: int, values: list[Any]) -> None:
        enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
        metadata = kernel.launch_metadata(grid, stream, *values)
        run(*grid, stream, function, packed, metadata, enter, leave, *values)

    names.update(
        runtime=knobs.runtime,
        with_hooks=with_hooks,
        stream_of=torch._C._cuda_getCurrentRawStream,
        index=device.index,
        function=function,
        packed=packed,
        grid_x=grid[0],
        grid_y=grid[1],
        grid_z=grid[2],
        run=run,
    )
    head = PUBLIC
    if _takes_direct(run):
        names.update(run=run.launch, cooperative=run.launch_cooperative_grid, pdl=run.launch_pdl)
        head = DIRECT
    parameters, passed = ", ".join(f"p{i}" for i in range(len(slots))), ", ".join(args)
    source = SOURCE.format(slots=parameters, args=passed, run=head)
    exec(source, names)
    return names["launch"]


def _takes_direct(run: Any) -> bool:
    """Whether the launcher's C function can be called without its Python wrapper, which allocates
    scratch memory first.

    Its C function has this signature in Triton 3.6 alone: others take the public way.
    """
    return (
        triton.__version__.startswith("3.6.")
        and type(run).__name__ == "CudaLauncher"
        and run.global_scratch_size == 0
        and run.profile_scratch_size == 0
    )


class _Address:
    """What a TMA descriptor's encoder asks of its base tensor, without keeping the tensor alive."""

    __slots__ = ("address", "dtype")

    def __init__(self, address: int, dtype: torch.dtype) -> None:
        self.address, self.dtype = address, dtype

    def data_ptr(self) -> int:
        return self.address


def _describer(tensor_map: TensorMap) -> Callable[[int], TensorDescriptor]:
    """From an address to the descriptor of the tensor there, made once for each of the last
    addresses."""
    dtype = tensor_map.tensor.dtype
    shape, strides, block = (
        list(v) for v in (tensor_map.shape, tensor_map.strides, tensor_map.block)
    )
    made: dict[int, TensorDescriptor] = {}

    def describe(address: int) -> TensorDescriptor:
        found = made.get(address)
        if found is None:
            if len(made) >= MAX_DESCRIPTORS:
                made.clear()
            found = made[address] = TensorDescriptor(
                _Address(address, dtype), shape, strides, block
            )
        return found

    return describe


def _slot(slots: Sequence[torch.Tensor], tensor: torch.Tensor) -> int:
    for index, candidate in enumerate(slots):
        if candidate is tensor:
            return index
    raise CompileError(
        "a launch refers to a tensor that is neither an argument, an output nor workspace. "
        "Declare it in `workspace`, or pass a view's shape and strides instead of the view."
    )
