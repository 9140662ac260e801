"""The arguments of a call, taken apart into memory and a description, and put together over a copy.

A kernel is tried on copies, never on the user's tensors. Copied is the whole storage behind each
tensor, once: views that overlap still do, addresses keep their value modulo 512, and a kernel that
reads around a view finds what is there. The description is JSON, the memory crosses as raw bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.jit import TensorWrapper
from triton.tools.tensor_descriptor import TensorDescriptor

from gristmill.core.implementation import PLAIN_TYPES
from gristmill.core.problem import dtype_name
from gristmill.errors import TuningError
from gristmill.verify.memory import CANARY, GUARD_BYTES

ALIGNED = 512  # what CUDA's allocator gives; a copy keeps its address modulo this
WHOLE_STORAGE_BYTES = 1 << 30  # of a larger storage, only the part that the arguments span
PLAIN_VALUES = (bool, int, float, str, type(None))

Node = list[Any]  # a tag and what it needs


class CannotTravelError(Exception):
    """Something that cannot cross to another process as data; the message says what and why."""


@dataclass(frozen=True)
class Block:
    """A piece of memory as bytes (an alias of the user's, or what was loaded), and its address
    modulo `ALIGNED`."""

    memory: torch.Tensor
    offset: int


@dataclass(frozen=True)
class Arguments:
    """A call's arguments: the memory behind its tensors, and everything else as a description."""

    blocks: tuple[Block, ...]
    positional: tuple[Node, ...]
    keywords: Mapping[str, Node]

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
        """Take arguments apart. The blocks alias the tensors' memory: nothing is copied yet."""
        taken = _Memory()
        for value in (*args, *kwargs.values()):
            for tensor in _tensors(value):
                taken.add(tensor)
        taken.close()
        return cls(
            taken.blocks,
            tuple(taken.encode(a) for a in args),
            {name: taken.encode(value) for name, value in kwargs.items()},
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of memory behind the tensors."""
        return sum(block.memory.numel() for block in self.blocks)

    def opaque(self) -> list[Any]:
        """Values that have no description: they cannot cross, and are not copied (of a named tuple,
        the tensors are)."""
        return [node[1] for node in self._leaves() if node[0] in ("opaque", "named")]

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the memory into `folder`; returns the description, as JSON.

        Raises:
            CannotTravelError: a value has no description.
        """
        for value in self.opaque():
            raise CannotTravelError(f"an argument is a {type(value).__name__}")
        files = []
        for index, block in enumerate(self.blocks):
            file = f"{name}-{index}.bin"
            block.memory.cpu().numpy().tofile(folder / file)
            files.append([file, str(block.memory.device), block.offset, block.memory.numel()])
        return {"files": files, "args": list(self.positional), "kwargs": dict(self.keywords)}

    @classmethod
    def load(cls, folder: Path, data: Mapping[str, Any]) -> Arguments:
        """What `save` wrote, on the devices that it was on."""

        def block(file: str, device: str, offset: int, size_bytes: int) -> Block:
            del size_bytes
            values = torch.from_numpy(np.fromfile(folder / file, dtype=np.uint8))
            return Block(values.to(device), offset)

        return cls(
            tuple(block(*entry) for entry in data["files"]), tuple(data["args"]), data["kwargs"]
        )

    def build(self, memory: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments over other memory of the blocks' sizes."""
        args = tuple(_decode(node, memory) for node in self.positional)
        return args, {name: _decode(node, memory) for name, node in self.keywords.items()}

    def _leaves(self) -> Iterator[Node]:
        pending = [*self.positional, *self.keywords.values()]
        while pending:
            node = pending.pop()
            if node[0] in ("tuple", "named"):
                pending += node[-1]
            yield node


class Copies:
    """Working copies of a call's arguments, between canaries; put back before every candidate."""

    def __init__(self, arguments: Arguments, owned: bool = False) -> None:
        """`owned`: the blocks are nobody else's (they were loaded), and are the pristine values as
        they are."""
        blocks = arguments.blocks
        self._pristine = [b.memory if owned else b.memory.clone() for b in blocks]
        self._whole = [_guarded(block) for block in blocks]
        self._working = [
            whole.narrow(0, _start(whole, block), block.memory.numel())
            for whole, block in zip(self._whole, blocks, strict=True)
        ]
        self.restore()
        self.args, self.kwargs = arguments.build(self._working)
        self._fresh = arguments.build(self._pristine)

    def restore(self) -> None:
        """Every value as it was in the call, and the canaries around them."""
        for whole, working, pristine in zip(
            self._whole, self._working, self._pristine, strict=True
        ):
            whole.fill_(CANARY)
            working.copy_(pristine)

    def intact(self) -> bool:
        """Whether nothing was written outside the arguments' memory (waits for the device)."""
        for whole, working in zip(self._whole, self._working, strict=True):
            start = working.storage_offset()
            sides = (whole[:start], whole[start + working.numel() :])
            if not all(bool((side == CANARY).all()) for side in sides):
                return False
        return True

    def named(self, names: Sequence[str], fresh: bool = False) -> dict[str, Any]:
        """The arguments by the parameters' names; `fresh`: with the values of the call, which are
        to be read only."""
        args, kwargs = self._fresh if fresh else (self.args, self.kwargs)
        return {**dict(zip(names, args, strict=False)), **kwargs}


def copies_of(arguments: Arguments, owned: bool = False) -> Copies:
    """`Copies`, or what to do where there is no memory for them.

    Raises:
        TuningError: the copies do not fit on the device.
    """
    try:
        return Copies(arguments, owned)
    except torch.OutOfMemoryError as error:
        size_gib = arguments.size_bytes / (1 << 30)
        raise TuningError(
            f"two copies of the call's arguments ({size_gib:.2f} GiB each) do not fit on the "
            "device beside what is there. Free memory, tune with smaller arguments of the same "
            "key, or set GRISTMILL_TUNE=never to run untuned."
        ) from error


def _guarded(block: Block) -> torch.Tensor:
    size = block.memory.numel() + ALIGNED + 2 * GUARD_BYTES
    device = block.memory.device
    pinned = device.type == "cpu" and torch.cuda.is_initialized()  # or a kernel cannot read it
    return torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pinned)


def _start(whole: torch.Tensor, block: Block) -> int:
    """Where in guarded memory a block has its address modulo `ALIGNED` (a CPU's allocator aligns
    to less)."""
    return GUARD_BYTES + (block.offset - whole.data_ptr() - GUARD_BYTES) % ALIGNED


class _Memory:
    """Finds the storages behind tensors, and encodes values against them."""

    def __init__(self) -> None:
        self._spans: dict[int, tuple[torch.Tensor, int, int]] = {}  # a tensor, first and last byte
        self.blocks: tuple[Block, ...] = ()
        self._places: dict[int, tuple[int, int]] = {}  # storage: its block, where that starts

    def add(self, tensor: torch.Tensor) -> None:
        """Make room for a tensor."""
        if tensor.numel() == 0:
            return
        first = tensor.storage_offset()
        last = first + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        low, high = first * tensor.itemsize, (last + 1) * tensor.itemsize
        key = tensor.untyped_storage().data_ptr()
        if key in self._spans:
            known, lower, higher = self._spans[key]
            low, high = min(low, lower), max(high, higher)
            # two storages over one memory (of numpy, of DLPack): the longer has what both show
            tensor = max(known, tensor, key=lambda t: t.untyped_storage().nbytes())
        self._spans[key] = (tensor, int(low), int(high))

    def close(self) -> None:
        """Settle which bytes of each storage are taken."""
        blocks = []
        for key, (tensor, first, last) in self._spans.items():
            storage = tensor.untyped_storage()
            whole = storage.nbytes() <= WHOLE_STORAGE_BYTES
            low, high = (0, storage.nbytes()) if whole else (first, last)
            alias = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            alias.set_(storage, low, (high - low,), (1,))  # pyright: ignore[reportCallIssue, reportArgumentType] (its stubs lack this form)
            self._places[key] = (len(blocks), low)
            blocks.append(Block(alias, (key + low) % ALIGNED))
        self.blocks = tuple(blocks)

    def encode(self, value: Any) -> Node:
        """A value as a tag and what it needs."""
        if type(value) in PLAIN_VALUES:
            return ["value", value]
        if type(value) in PLAIN_TYPES and _is_dense(value):
            return self._tensor(value)
        if isinstance(value, TensorDescriptor) and type(value.base) in PLAIN_TYPES:
            shape, strides = [int(n) for n in value.shape], [int(n) for n in value.strides]
            rest = [shape, strides, [int(n) for n in value.block_shape], value.padding]
            return ["descriptor", self._tensor(value.base), *rest]
        if type(value) is TensorWrapper and type(value.base) in PLAIN_TYPES:
            return ["wrapped", self._tensor(value.base), value.dtype.name]
        if type(value) is tuple:
            return ["tuple", [self.encode(v) for v in value]]
        if isinstance(value, tuple) and hasattr(value, "_make"):
            return ["named", value, [self.encode(v) for v in value]]
        if isinstance(value, tl.dtype):
            return ["dtype", value.name]
        if isinstance(value, tl.constexpr) and type(value.value) in PLAIN_VALUES:
            return ["constexpr", value.value]
        return ["opaque", value]

    def _tensor(self, tensor: torch.Tensor) -> Node:
        shape, strides = list(tensor.shape), list(tensor.stride())
        facts = [dtype_name(tensor.dtype), shape, strides]
        if tensor.numel() == 0:
            return ["tensor", None, str(tensor.device), *facts]
        block, low = self._places[tensor.untyped_storage().data_ptr()]
        return ["tensor", block, tensor.storage_offset() * tensor.itemsize - low, *facts]


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not (tensor.is_neg() or tensor.is_conj())


def tensors_of(named: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors behind arguments, by name: of a descriptor what it is of, of a tuple `name[0]`
    and so on."""
    found: dict[str, torch.Tensor] = {}
    for name, value in named.items():
        if isinstance(value, tuple):
            found.update(tensors_of({f"{name}[{i}]": part for i, part in enumerate(value)}))
        elif isinstance(value, (TensorDescriptor, TensorWrapper)):
            found.update(tensors_of({name: value.base}))
        elif isinstance(value, torch.Tensor):
            found[name] = value
    return found


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value that can be taken apart."""
    for tensor in tensors_of({"": value}).values():
        if type(tensor) in PLAIN_TYPES and _is_dense(tensor):
            yield tensor


def _decode(node: Node, memory: Sequence[torch.Tensor]) -> Any:
    tag, *rest = node
    decoders: dict[str, Callable[..., Any]] = {
        "value": lambda value: value,
        "opaque": lambda value: value,
        "tensor": lambda *facts: _tensor_over(memory, *facts),
        "descriptor": lambda base, *facts: TensorDescriptor(_decode(base, memory), *facts),
        "wrapped": lambda base, dtype: TensorWrapper(_decode(base, memory), tl.dtype(dtype)),
        "tuple": lambda parts: tuple(_decode(part, memory) for part in parts),
        "named": lambda old, parts: old._make(_decode(part, memory) for part in parts),
        "dtype": tl.dtype,
        "constexpr": tl.constexpr,
    }
    return decoders[tag](*rest)


def _tensor_over(
    memory: Sequence[torch.Tensor],
    block: int | None,
    where: int | str,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
) -> torch.Tensor:
    kind = getattr(torch, dtype)
    if block is None:
        device = memory[0].device if memory else str(where)
        return torch.empty_strided(tuple(shape), tuple(strides), dtype=kind, device=device)
    base = memory[block]
    start = (base.storage_offset() + int(where)) // kind.itemsize
    alone = torch.empty(0, dtype=kind, device=base.device)
    return alone.set_(base.untyped_storage(), start, tuple(shape), tuple(strides))  # pyright: ignore[reportCallIssue, reportArgumentType] (its stubs lack this form)


def on_meta(data: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a description that `save` made, with no memory: what a compiler needs."""
    memory = [
        torch.empty(offset + size_bytes, dtype=torch.uint8, device="meta")[offset:]
        for _, _, offset, size_bytes in data["files"]
    ]
    return Arguments((), tuple(data["args"]), data["kwargs"]).build(memory)


def encode_values(values: Mapping[str, Any]) -> dict[str, Node]:
    """Keywords of a launch (constexprs and options) as JSON.

    Raises:
        CannotTravelError: a value has no description.
    """
    taken = Arguments.of((), values)
    for value in taken.opaque():
        raise CannotTravelError(f"a keyword is a {type(value).__name__}")
    if taken.blocks:
        raise CannotTravelError("a keyword of the launch is a tensor")
    return dict(taken.keywords)


def decode_values(data: Mapping[str, Node]) -> dict[str, Any]:
    """What `encode_values` made."""
    return {name: _decode(node, ()) for name, node in data.items()}


def describe(value: Any) -> str:
    """A value as a line of a store's key."""
    if isinstance(value, torch.Tensor):
        return f"{dtype_name(value.dtype)}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else hashlib.sha256(text.encode()).hexdigest()[:16]
