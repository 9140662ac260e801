"""A problem: what a call looks like, without its values; and the bucket that a plan is kept for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gristmill.record import record

ALIGNMENT_BYTES = 16  # what Triton specialises on, and what TMA and 16-byte accesses need


@record
class TensorSpec:
    """A tensor without its values: shape, strides (in elements), dtype name, and whether it starts
    on 16 bytes."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    aligned: bool = True

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        aligned = tensor.data_ptr() % ALIGNMENT_BYTES == 0
        return cls(tuple(tensor.shape), tuple(tensor.stride()), dtype_name(tensor.dtype), aligned)

    @classmethod
    def contiguous(cls, shape: Sequence[int], dtype: torch.dtype | str) -> TensorSpec:
        name = dtype if isinstance(dtype, str) else dtype_name(dtype)
        return cls(tuple(shape), contiguous_strides(shape), name)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def itemsize(self) -> int:
        return self.torch_dtype.itemsize

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def size_bytes(self) -> int:
        return self.numel * self.itemsize

    @property
    def extent(self) -> int:
        """Elements between the first and the last that the strides reach, plus one (0 for an empty
        tensor)."""
        if self.numel == 0:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    @property
    def is_contiguous(self) -> bool:
        return all(
            n == 1 or s == c
            for n, s, c in zip(
                self.shape, self.strides, contiguous_strides(self.shape), strict=True
            )
        )

    def lies_as(self, other: TensorSpec) -> bool:
        """Whether it is what `other` is, but for strides that no element is reached by."""
        if (self.shape, self.dtype, self.aligned) != (other.shape, other.dtype, other.aligned):
            return False
        facts = zip(self.shape, self.strides, other.strides, strict=True)
        return 0 in self.shape or all(n == 1 or mine == its for n, mine, its in facts)

    @property
    def tma_dim(self) -> int | None:
        """The unit-stride dimension if every other stride and the base are multiples of 16 bytes,
        else None."""
        if not self.aligned or self.numel == 0:
            return None
        for dim in reversed(range(len(self.shape))):
            rest = [s for d, s in enumerate(self.strides) if d != dim]
            if self.strides[dim] == 1 and all(
                s > 0 and s * self.itemsize % ALIGNMENT_BYTES == 0 for s in rest
            ):
                return dim
        return None

    def empty(self, device: torch.device | str) -> torch.Tensor:
        """An uninitialised tensor of this spec; a spec that is not aligned starts one element off
        16 bytes."""
        offset = 0 if self.aligned else 1
        storage = torch.empty(self.extent + offset, dtype=self.torch_dtype, device=device)
        return storage.as_strided(self.shape, self.strides, offset)

    def fill(self, values: torch.Tensor) -> torch.Tensor:
        """`values` (of this shape) copied into a tensor of this spec; of a broadcast dimension, its
        first entry."""
        out = self.empty(values.device)
        broadcast = [
            slice(0, 1) if s == 0 and n > 1 else slice(None)
            for n, s in zip(self.shape, self.strides, strict=True)
        ]
        out[tuple(broadcast)].copy_(values[tuple(broadcast)])
        return out


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor. A size that depends on data (rows that a mask picks, in
    compiled code) is a symbol that cannot be compared."""
    strides: list[int] = []
    step: Any = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1) if isinstance(size, int) else torch.sym_max(size, 1)
    return tuple(reversed(strides))


def merge_dims(shape: Sequence[int], *strides: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """(size, stride in each tensor ...) of the dimensions of tensors of one shape, merged where
    they can be in every tensor, innermost first; those of size 1 are left out.

    A merged dimension walks memory in the same order as the dimensions it stands for.
    """
    merged: list[tuple[int, ...]] = []
    dims = [dim for dim in zip(shape, *strides, strict=True) if dim[0] != 1]
    for size, *steps in reversed(dims):
        inner, *inner_steps = merged[-1] if merged else (0,)
        if merged and all(s == inner * i for s, i in zip(steps, inner_steps, strict=True)):
            merged[-1] = (inner * size, *inner_steps)
        else:
            merged.append((size, *steps))
    return tuple(merged)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


Arg = TensorSpec | int | float | bool | str | None


@record
class Problem:
    """One op's arguments without their values, in the schema's order."""

    op: str
    args: tuple[tuple[str, Arg], ...]

    @classmethod
    def of(cls, op: str, names: Sequence[str], values: Sequence[Any]) -> Problem:
        args = (TensorSpec.of(v) if isinstance(v, torch.Tensor) else v for v in values)
        return cls(op, tuple(zip(names, args, strict=True)))

    # An argument is a TensorSpec, a scalar or None; specs know which from the schema.
    def __getitem__(self, name: str) -> Any:
        for known, value in self.args:
            if known == name:
                return value
        raise KeyError(name)

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        return {name: value for name, value in self.args if isinstance(value, TensorSpec)}

    def empty(self, device: torch.device | str) -> tuple[Any, ...]:
        """Arguments of this problem with uninitialised tensors."""
        return tuple(v.empty(device) if isinstance(v, TensorSpec) else v for _, v in self.args)

    def meta(self) -> tuple[Any, ...]:
        """The arguments as meta tensors and scalars (a spec that is not aligned keeps a storage
        offset of one)."""
        return self.empty("meta")

    def to_json(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "args": {
                name: {
                    "shape": v.shape,
                    "strides": v.strides,
                    "dtype": v.dtype,
                    "aligned": v.aligned,
                }
                if isinstance(v, TensorSpec)
                else v
                for name, v in self.args
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Problem:
        def arg(value: Any) -> Arg:
            if isinstance(value, Mapping):
                return TensorSpec(
                    tuple(value["shape"]), tuple(value["strides"]), value["dtype"], value["aligned"]
                )
            return value

        return cls(data["op"], tuple((name, arg(v)) for name, v in data["args"].items()))

    def __str__(self) -> str:
        def text(value: Arg) -> str:
            if not isinstance(value, TensorSpec):
                return str(value)
            layout = layout_class(value).replace("r", "", 1)  # the usual one goes without saying
            return f"{value.dtype}[{'x'.join(map(str, value.shape))}]{layout}"

        shown = ", ".join(f"{name}={text(value)}" for name, value in self.args if value is not None)
        return f"{self.op}({shown})"


@record
class Axis:
    """A named size of a problem. A plan holds for one `exact` size, or for a bucket of sizes up to
    `edge`."""

    name: str
    size: int
    exact: bool = True

    @property
    def edge(self) -> int:
        return self.size if self.exact else bucket_edge(self.size)


def bucket_edge(size: int) -> int:
    """The upper edge of a bucketed size: powers of two, and from 16 on the halves between them (16,
    24, 32, 48, ...)."""
    if size <= 16:
        return 1 << max(size - 1, 0).bit_length() if size > 0 else 0
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power


def layout_class(spec: TensorSpec) -> str:
    """How a tensor lies in memory, as far as kernels care: `r`/`c`/`s` for a unit stride in the
    last dimension, in the one before, or in neither; `+` when it is not dense; `!` when its base or
    a stride is off 16 bytes."""
    strides, shape = spec.strides, spec.shape
    unit = "r" if not strides or strides[-1] == 1 or shape[-1] == 1 else "s"
    if unit == "s" and len(strides) > 1 and strides[-2] == 1:
        unit = "c"
    dense = spec.is_contiguous or (unit == "c" and strides == contiguous_strides(shape[::-1])[::-1])
    aligned = spec.aligned and all(
        s == 1 or n == 1 or s * spec.itemsize % ALIGNMENT_BYTES == 0
        for n, s in zip(shape, strides, strict=True)
    )
    return unit + ("" if dense else "+") + ("" if aligned else "!")


@record
class Bucket:
    """The part of a problem that a plan is kept for: exact and bucketed sizes, dtypes, layouts,
    code-changing scalars."""

    op: str
    axes: tuple[tuple[str, int], ...]
    rest: str

    @classmethod
    def of(cls, problem: Problem, axes: Sequence[Axis]) -> Bucket:
        parts = []
        for name, value in problem.args:
            if isinstance(value, TensorSpec):
                parts.append(f"{name}:{value.dtype}:{layout_class(value)}")
            elif not isinstance(
                value, float
            ):  # a float is run-time data; anything else may change the code
                parts.append(f"{name}:{value}")
        return cls(problem.op, tuple((a.name, a.edge) for a in axes), ",".join(parts))

    @property
    def key(self) -> str:
        return f"{','.join(f'{n}={s}' for n, s in self.axes)}|{self.rest}"

    def family(self, axes: Sequence[Axis]) -> str:
        """The key without the bucketed sizes: buckets of one family are neighbours of each
        other."""
        exact = {a.name for a in axes if a.exact}
        return (
            f"{','.join(f'{n}={s}' if n in exact else f'{n}=*' for n, s in self.axes)}|{self.rest}"
        )
