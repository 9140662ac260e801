"""The forms of an operator, and the problems that stand for sizes and layouts that nobody named:
none, one and every other number, and rows that do not follow each other in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from gristmill.aot.elements import element_type
from gristmill.aot.functions import OpArgument, OpForm
from gristmill.aot.symbolic import NARROW, Tracer, allocated, open_values
from gristmill.core.op import Op
from gristmill.core.problem import (
    ALIGNMENT_BYTES,
    Arg,
    Problem,
    TensorSpec,
    contiguous_strides,
)
from gristmill.record import record

LARGEST = NARROW - 1  # the size up to which every one is looked at
ROUND = 16  # elements: a stride of so many is on 16 bytes, whatever the type
RESIDUES = (0, 1, 2, 4, 8)  # of that: as strides, off 16 bytes by another power of two each
Dims = Mapping[str, Mapping[int, str]]


def arguments_of(op: Op, problem: Problem) -> tuple[OpArgument, ...]:
    """The form that a problem has."""
    tensors = {a.name for a in op.parsed.arguments if "Tensor" in str(a.type)}
    return tuple(_argument(name, value, name in tensors) for name, value in problem.args)


def _argument(name: str, value: Arg, is_tensor: bool) -> OpArgument:
    if isinstance(value, TensorSpec):
        type_ = element_type(value.torch_dtype, f"`{name}`")
        return OpArgument(name, "tensor", type_, len(value.shape))
    if value is None and is_tensor:
        return OpArgument(name, "none")
    if type(value) is float:
        return OpArgument(name, "scalar", "fp32")
    return OpArgument(name, "value", value=value)


def form_of(op: Op, problem: Problem) -> OpForm:
    """A form without rows: what its outputs are for any sizes."""
    tracer = Tracer()
    values = open_values(tracer, op, problem)
    before = set(tracer.asked())
    outputs = allocated(op.outputs(op.problem(values)))
    made = tuple(tracer.tensor(n, t) for n, t in zip(op.output_names, outputs, strict=True))
    asked = tuple(c for c in tracer.asked() if c not in before)
    return OpForm(arguments_of(op, problem), asked, made, ())


@record
class Layout:
    """How the tensors of a call lie.

    Attributes:
        gapped: those that are parts of tensors which are larger in `dim`, by so many bytes.
        off: those that start off 16 bytes.
    """

    gapped: tuple[str, ...] = ()
    dim: int = -1
    size_bytes: int = 0
    off: frozenset[str] = frozenset()

    def of(self, problem: Problem) -> Problem:
        """A problem in this layout; where a tensor takes no gap, it lies as it does."""
        changed = {}
        for name, spec in problem.tensors.items():
            one = _with_gaps(spec, self.dim, self.size_bytes) if name in self.gapped else None
            changed[name] = replace(one or spec, aligned=spec.aligned and name not in self.off)
        return _with(problem, changed)


@record
class Line:
    """Problems of one kind by one of their sizes, which is `first + step * index`."""

    problem: Problem
    dims: Dims
    name: str
    layout: Layout
    first: int = 0
    step: int = 1

    def __len__(self) -> int:
        return (LARGEST - self.first) // self.step + 1

    def at(self, index: int) -> Problem:
        size = self.first + self.step * index
        return self.layout.of(_resized(self.problem, self.dims, {self.name: size}))


def relatives(problem: Problem, dims: Dims) -> Iterator[Problem]:
    """A problem, and it with any of its open sizes 0 or 1; of each, the layouts that callers
    have."""
    names, everything = _names(dims), frozenset(problem.tensors)
    for sizes in itertools.product((None, 0, 1), repeat=len(names)):
        one = _resized(problem, dims, dict(zip(names, sizes, strict=True)))
        for layout in _gaps(problem, dims):
            yield layout.of(one)
            yield replace(layout, off=everything).of(one)  # type: ignore[type-var]
    for off in _subsets(everything):
        yield Layout(off=off).of(problem)


def lines(problem: Problem, dims: Dims) -> Iterator[Line]:
    """A problem with each of its open sizes any number, in the layouts that callers have; without
    gaps, the other sizes are 0 and 1 too."""
    names, offs = _names(dims), list(_subsets(problem.tensors))
    gaps = [gap for gap in _gaps(problem, dims) if gap.gapped]
    layouts = [replace(gap, off=off) for gap, off in itertools.product(gaps, offs)]  # type: ignore[type-var]
    for name in names:
        for others in (None, 0, 1) if len(names) > 1 else (None,):
            sizes = {other: others for other in names if other != name}
            one = _resized(problem, dims, sizes)
            for off in offs:
                yield from _residues(Line(one, dims, name, Layout(off=off)))
        for layout in layouts:
            yield from _residues(Line(problem, dims, name, layout))


def _residues(line: Line) -> Iterator[Line]:
    """A line; where its size is a stride, one of each kind of stride."""
    if not _is_stride(line):
        yield line
        return
    for first in RESIDUES:
        yield replace(line, first=first, step=ROUND)  # type: ignore[type-var]


def _is_stride(line: Line) -> bool:
    """Whether some stride goes with the size, and is round for some sizes alone."""
    two, three = (line.at(index).tensors.values() for index in (2, 3))
    pairs = [zip(a.strides, b.strides, strict=True) for a, b in zip(two, three, strict=True)]
    return any((b - a) % ROUND for pair in pairs for a, b in pair)


def _names(dims: Dims) -> list[str]:
    return sorted({name for of in dims.values() for name in of.values()})


def _subsets(names: Iterable[str]) -> Iterator[frozenset[str]]:
    """All of the names first: what relies on no alignment serves the rest."""
    ordered = sorted(names)
    for count in reversed(range(len(ordered) + 1)):
        yield from map(frozenset, itertools.combinations(ordered, count))


def _gaps(problem: Problem, dims: Dims) -> Iterator[Layout]:
    """No gaps; and gaps behind rows or behind matrices, in one of the open tensors or in all."""
    yield Layout()
    for dim, by_bytes in ((-1, ALIGNMENT_BYTES), (-1, 0), (-2, 0)):
        names = [n for n in dims if dims[n] and _with_gaps(problem[n], dim, by_bytes)]
        yield from (Layout((name,), dim, by_bytes) for name in names)
        if len(names) > 1:
            yield Layout(tuple(names), dim, by_bytes)


def _resized(problem: Problem, dims: Dims, sizes: Mapping[str, int | None]) -> Problem:
    changed = {}
    for tensor, spec in problem.tensors.items():
        asked = {d: sizes.get(name) for d, name in dims.get(tensor, {}).items()}
        shape = tuple(n if (a := asked.get(d)) is None else a for d, n in enumerate(spec.shape))
        changed[tensor] = replace(spec, shape=shape, strides=_strides(spec, shape))
    return _with(problem, changed)


def _strides(spec: TensorSpec, shape: Sequence[int]) -> tuple[int, ...]:
    """Strides for another shape: of a dense tensor dense, in the order in which it lies."""
    order = sorted(range(len(shape)), key=lambda d: -spec.strides[d])
    sizes, steps = (tuple(of[d] for d in order) for of in (spec.shape, spec.strides))
    if not TensorSpec(sizes, steps, spec.dtype).is_contiguous:
        return spec.strides
    found = dict(zip(order, contiguous_strides([shape[d] for d in order]), strict=True))
    return tuple(found[d] for d in range(len(shape)))


def _with_gaps(spec: TensorSpec, dim: int, size_bytes: int) -> TensorSpec | None:
    """A tensor as a part of one that is larger in `dim`, by so many bytes, but by one at least;
    `None` where it has no dimension before, or its rows are not dense."""
    if len(spec.shape) <= -dim or spec.strides[-1] != 1:
        return None
    whole = list(spec.shape)
    whole[dim] += max(1, size_bytes // spec.itemsize)
    return replace(spec, strides=contiguous_strides(whole))


def _with(problem: Problem, changed: Mapping[str, TensorSpec]) -> Problem:
    return Problem(problem.op, tuple((n, changed.get(n, v)) for n, v in problem.args))
