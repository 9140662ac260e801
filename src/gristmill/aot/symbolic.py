"""Launchers run with symbols in place of sizes: their launches as expressions, and what they asked
of the sizes on the way as conditions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from gristmill.aot.elements import element_type
from gristmill.aot.expressions import UntraceableError, conditions, text
from gristmill.aot.functions import Condition, OpTensor
from gristmill.core.op import Op
from gristmill.core.problem import Problem, TensorSpec

NARROW = 1 << 31  # what 32 bits hold is below


class Traced(torch.Tensor):
    """A tensor of symbolic sizes, without memory. Its address is a symbol too, so that asking for
    its alignment is noted."""

    # A view of one is plain, and has no address to ask for. There is no public name for this.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore  # noqa: PGH003, SLF001
    address: Any = 0

    def data_ptr(self) -> Any:
        return self.address


class Tracer:
    """The symbols of one run, and what was asked of them.

    Zero and one are sizes like any other: torch would compile them in.
    """

    def __init__(self) -> None:
        self._env = ShapeEnv(specialize_zero_one=False, duck_shape=False)
        self._names: dict[Any, str] = {}

    def symbol(self, name: str, hint: int) -> Any:
        """A whole number, 0 or more, that is `hint` where somebody asks."""
        source = ConstantSource(name)
        symbol = self._env.create_symbol(
            hint,
            source=source,
            dynamic_dim=DimDynamic.DYNAMIC,
            constraint_dim=None,
            positive=None,
            do_not_specialize_zero_one=True,
        )
        self._names[symbol] = name
        return self._env.create_symintnode(symbol, hint=hint, source=source)

    def argument(self, name: str, spec: TensorSpec, dynamic: Collection[int]) -> Traced:
        """A tensor whose `dynamic` dimensions are symbols; and then its strides, but those of 1."""
        shape = [
            self.symbol(size_name(name, d), size) if d in dynamic else size
            for d, size in enumerate(spec.shape)
        ]
        strides: Sequence[Any] = spec.strides
        if dynamic:
            strides = [
                stride if stride == 1 else self.symbol(stride_name(name, d), stride)
                for d, stride in enumerate(spec.strides)
            ]
        tensor = traced(shape, strides, spec.torch_dtype)
        tensor.address = self.symbol(address_name(name), 0 if spec.aligned else spec.itemsize)
        return tensor

    def text(self, value: Any) -> str:
        """A number or a symbolic one as an expression.

        Raises:
            UntraceableError: it is neither.
        """
        if isinstance(value, torch.SymInt):
            return text(value.node.expr, self._names)
        if type(value) is not int:
            raise UntraceableError(f"a size is {value!r}, which is no whole number")
        return text(value, self._names)

    def symbols(self, value: Any) -> frozenset[str]:
        """The names of the symbols that a number depends on, as far as is known by now."""
        if not isinstance(value, torch.SymInt):
            return frozenset()
        expression = self._env.replace(value.node.expr)
        return frozenset(self._names[symbol] for symbol in expression.free_symbols)

    def is_narrow(self, value: torch.SymInt) -> bool:
        """Whether what was asked so far keeps a number within 32 bits."""
        return bool(self._env.bound_sympy(value.node.expr).upper < NARROW)

    def tensor(self, name: str, of: torch.Tensor) -> OpTensor:
        """An output or a piece of workspace, in expressions."""
        shape, strides = (tuple(map(self.text, part)) for part in (of.shape, of.stride()))
        return OpTensor(name, element_type(of.dtype, f"`{name}`"), shape, strides)

    def asked(self) -> tuple[Condition, ...]:
        """The conditions that the answers so far rely on, but for those that every size meets.

        Raises:
            UntraceableError: one cannot be said.
        """
        found = (c for g in self._env.guards for c in conditions(g.expr, self._names))
        always = {Condition("0", "<=", name) for name in self._names.values()}
        return tuple(c for c in dict.fromkeys(found) if c not in always)


def size_name(tensor: str, dim: int) -> str:
    """What expressions call a size."""
    return f"{tensor}_size_{dim}"


def stride_name(tensor: str, dim: int) -> str:
    """What expressions call a stride, in elements."""
    return f"{tensor}_stride_{dim}"


def address_name(tensor: str) -> str:
    """What expressions call an address."""
    return f"{tensor}_address"


def traced(shape: Sequence[Any], strides: Sequence[Any], dtype: torch.dtype) -> Traced:
    """A tensor without memory, of sizes that may be symbols."""
    meta = torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device="meta")
    return meta.as_subclass(Traced)


def allocated(specs: Iterable[TensorSpec]) -> tuple[Traced, ...]:
    """Outputs or workspace of these specs."""
    return tuple(traced(spec.shape, spec.strides, spec.torch_dtype) for spec in specs)


def fixed(name: str, spec: TensorSpec, dynamic: Collection[int]) -> list[Condition]:
    """That a tensor has the sizes and strides which are no symbols."""
    found = []
    for d, (size, stride) in enumerate(zip(spec.shape, spec.strides, strict=True)):
        if d not in dynamic:
            found.append(Condition(size_name(name, d), "==", str(size)))
        if (stride == 1 or not dynamic) and (size > 1 or d in dynamic):
            found.append(Condition(stride_name(name, d), "==", str(stride)))
    return found


def open_values(tracer: Tracer, op: Op, problem: Problem) -> tuple[Any, ...]:
    """Arguments of a problem with every size a symbol, held against the op's contract."""
    values = tuple(
        tracer.argument(name, value, range(len(value.shape)))
        if isinstance(value, TensorSpec)
        else value
        for name, value in problem.args
    )
    op.validate(values)
    return values


def dynamic_dims(op: Op, problem: Problem) -> dict[str, dict[int, str]]:
    """The dimensions of each tensor whose sizes a plan holds for a range of: those that the op's
    inexact axes are made of, and no exact one is. Dimensions that the contract makes equal have one
    name."""
    tracer = Tracer()
    values = open_values(tracer, op, problem)
    axes = op.axes(op.problem(values))
    exact, inexact = (
        frozenset[str]().union(*(tracer.symbols(a.size) for a in axes if a.exact is wanted))
        for wanted in (True, False)
    )
    found = {}
    for name, value in zip(op.names, values, strict=True):
        if isinstance(value, Traced):
            of = {d: tracer.symbols(size) for d, size in enumerate(value.shape)}
            found[name] = {d: min(s) for d, s in of.items() if s and s <= inexact - exact}
    return found


def sizes_of(specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """What the names of expressions stand for in a call with tensors of these specs."""
    found = {}
    for name, spec in specs.items():
        found[address_name(name)] = 0 if spec.aligned else spec.itemsize
        for d, (size, stride) in enumerate(zip(spec.shape, spec.strides, strict=True)):
            found[size_name(name, d)] = size
            found[stride_name(name, d)] = stride
    return found
