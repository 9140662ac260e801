"""The forms of an operator, and the problems that stand for sizes of another kind than those that
somebody named: none, one, and rows that do not follow each other in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

from gristmill.aot.elements import element_type
from gristmill.aot.functions import OpArgument, OpForm
from gristmill.aot.symbolic import Tracer, allocated, open_values
from gristmill.core.op import Op
from gristmill.core.problem import (
    ALIGNMENT_BYTES,
    Arg,
    Problem,
    TensorSpec,
    contiguous_strides,
)

LARGEST = 23  # the power of two up to which sizes are looked at
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


def relatives(problem: Problem, dims: Dims) -> Iterator[Problem]:
    """A problem, and it with any of its open sizes 0 or 1; of each, the layouts that callers
    have."""
    names = _names(dims)
    for sizes in itertools.product((None, 0, 1), repeat=len(names)):
        yield from _layouts(_resized(problem, dims, dict(zip(names, sizes, strict=True))), dims)


def sizes_between(problem: Problem, dims: Dims) -> Iterator[Problem]:
    """A problem with each of its open sizes any power of two, in the layouts that callers have."""
    for name in _names(dims):
        for power in range(1, LARGEST):
            yield from _layouts(_resized(problem, dims, {name: 1 << power}), dims)


def _names(dims: Dims) -> list[str]:
    return sorted({name for of in dims.values() for name in of.values()})


def _layouts(problem: Problem, dims: Dims) -> Iterator[Problem]:
    """A problem as it is, and with gaps in its tensors, behind rows or behind matrices, in one of
    them or in all; and all of these off 16 bytes."""
    yield problem
    found = [problem]
    for dim, by_bytes in ((-1, ALIGNMENT_BYTES), (-1, 0), (-2, 0)):
        gaps = {
            name: gap
            for name in dims
            if dims[name] and (gap := _with_gaps(problem[name], dim, by_bytes)) is not None
        }
        found += (_with(problem, {name: spec}) for name, spec in gaps.items())
        if len(gaps) > 1:
            found.append(_with(problem, gaps))
    yield from found[1:]
    for one in found:
        yield _with(one, {n: replace(s, aligned=False) for n, s in one.tensors.items()})


def _resized(problem: Problem, dims: Dims, sizes: Mapping[str, int | None]) -> Problem:
    changed = {}
    for tensor, spec in problem.tensors.items():
        asked = {d: sizes.get(name) for d, name in dims.get(tensor, {}).items()}
        shape = tuple(n if (a := asked.get(d)) is None else a for d, n in enumerate(spec.shape))
        strides = contiguous_strides(shape) if spec.is_contiguous else spec.strides
        changed[tensor] = replace(spec, shape=shape, strides=strides)
    return _with(problem, changed)


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
