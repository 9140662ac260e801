"""The hot path of a launch: a function generated for one loaded kernel, from addresses to the
driver.

Generated, so that no call asks of each argument whether it is a tensor, and which one, and copies a
list; docs/performance/dispatch.md has the host time with and without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch
from triton import knobs
from triton.compiler import CompiledKernel

from gristmill.core.launch import Launch, TensorMap
from gristmill.errors import CompileError

if TYPE_CHECKING:
    from triton.tools.tensor_descriptor import TensorDescriptor

MAX_DESCRIPTORS = 64  # addresses remembered an argument: a caching allocator cycles through few

SOURCE = """
def launch({slots}):
    if getattr(runtime.launch_enter_hook, "calls", 1) or getattr(runtime.launch_exit_hook, "calls",
    1):
        return with_hooks(stream_of(index), [{arguments}])
    run(grid_x, grid_y, grid_z, stream_of(index), function, packed, None, None, None, {arguments})
"""


def bind_launch(
    launch: Launch, kernel: CompiledKernel, slots: Sequence[torch.Tensor], device: torch.device
) -> Callable[..., None]:
    """A function that launches `kernel` as `launch` does, for other addresses of the same tensors.

    `slots` are the tensors that the launch refers to (none is kept alive); the function takes their
    new `data_ptr()`s in that order, as positional arguments. It is valid for tensors with the same
    shapes, strides, dtypes, device and alignment, and expects `device` to be the current one.
    """
    run: Any = kernel.run
    names, arguments = _arguments(launch, slots)
    grid = (*launch.grid, 1, 1)[:3]
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
    source = SOURCE.format(
        slots=", ".join(f"p{i}" for i in range(len(slots))), arguments=", ".join(arguments)
    )
    exec(code(source), names)
    return names["launch"]


@functools.lru_cache(maxsize=512)
def code(source: str) -> CodeType:
    """The code of a generated function. Launches differ in what their names stand for: a new token
    count has the text of the last one, and compiling it takes longer than all the rest."""
    return compile(source, "<gristmill>", "exec")


def _arguments(launch: Launch, slots: Sequence[torch.Tensor]) -> tuple[dict[str, Any], list[str]]:
    """The values behind names, and the arguments as Triton's launcher takes them: expressions of
    the names and of the addresses `p0`, `p1`, ... of the slots."""
    names: dict[str, Any] = {}
    arguments: list[str] = []
    for position, arg in enumerate(launch.args):
        if isinstance(arg, TensorMap):
            names[f"descriptor_{position}"] = _ByAddress(_describer(arg))
            arguments.append(f"descriptor_{position}[p{_slot(slots, arg.tensor)}]")
        elif isinstance(arg, torch.Tensor):
            arguments.append(f"p{_slot(slots, arg)}")
        else:
            names[f"c{position}"] = arg
            arguments.append(f"c{position}")
    for position in range(len(launch.args), len(launch.kernel.arg_names)):
        names[f"c{position}"] = launch.constexprs.get(launch.kernel.arg_names[position])
        arguments.append(f"c{position}")
    return names, arguments


class _Address:
    """What a TMA descriptor's encoder asks of its base tensor, without keeping the tensor alive."""

    __slots__ = ("address", "dtype")

    def __init__(self, address: int, dtype: torch.dtype) -> None:
        self.address, self.dtype = address, dtype

    def data_ptr(self) -> int:
        return self.address


class _ByAddress(dict[int, Any]):
    """What `make` makes of an address, made once for each of the last ones."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __missing__(self, address: int) -> Any:
        if len(self) >= MAX_DESCRIPTORS:
            self.clear()
        made = self[address] = self.make(address)
        return made


def descriptor(
    base: Any, shape: Sequence[int], strides: Sequence[int], block: Sequence[int]
) -> TensorDescriptor:
    """A TMA descriptor of `base`: a tensor, or what stands for one."""
    # 0.6 ms that only who launches by TMA needs.
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(base, list(shape), list(strides), list(block))


def _describer(tensor_map: TensorMap) -> Callable[[int], TensorDescriptor]:
    """From an address to the descriptor of the tensor there, which is not kept alive."""
    dtype = tensor_map.tensor.dtype
    sizes = tensor_map.shape, tensor_map.strides, tensor_map.block
    return lambda address: descriptor(_Address(address, dtype), *sizes)


def _slot(slots: Sequence[torch.Tensor], tensor: torch.Tensor) -> int:
    for index, candidate in enumerate(slots):
        if candidate is tensor:
            return index
    raise CompileError(
        "a launch refers to a tensor that is neither an argument, an output nor workspace. "
        "Declare it in `workspace`, or pass a view's shape and strides instead of the view."
    )
