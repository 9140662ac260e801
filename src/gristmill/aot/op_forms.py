"""The forms of an operator, and the problems that stand for sizes of another kind than those that
somebody named: none, one, and rows that do not follow each other in memory."""

from __future__ import annotations

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
    """A problem with each of its open sizes 0 and 1, and with padded rows in its tensors: in each,
    and in all."""
    for name in sorted({name for of in dims.values() for name in of.values()}):
        for size in (0, 1):
            yield _resized(problem, dims, name, size)
    padded = {n: p for n in dims if dims[n] and (p := _padded(problem[n])) is not None}
    for names in [*([name] for name in padded), list(padded)]:
        yield _with(problem, {name: padded[name] for name in names})


def _resized(problem: Problem, dims: Dims, name: str, size: int) -> Problem:
    changed = {}
    for tensor, spec in problem.tensors.items():
        of = dims.get(tensor, {})
        shape = tuple(size if of.get(d) == name else n for d, n in enumerate(spec.shape))
        strides = contiguous_strides(shape) if spec.is_contiguous else spec.strides
        changed[tensor] = replace(spec, shape=shape, strides=strides)
    return _with(problem, changed)


def _padded(spec: TensorSpec) -> TensorSpec | None:
    """Rows with 16 bytes behind each; `None` where the rows of a tensor are no dense ones."""
    if len(spec.shape) < 2 or spec.strides[-1] != 1:
        return None
    width = spec.shape[-1] + max(1, ALIGNMENT_BYTES // spec.itemsize)
    return replace(spec, strides=contiguous_strides((*spec.shape[:-1], width)))


def _with(problem: Problem, changed: Mapping[str, TensorSpec]) -> Problem:
    return Problem(problem.op, tuple((n, changed.get(n, v)) for n, v in problem.args))
