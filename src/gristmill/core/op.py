"""An op: the contract that every implementation of it meets, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import cached_property
from typing import Any, Literal

import torch

from gristmill.core.gradient import Gradient
from gristmill.core.problem import Axis, Bucket, Problem, TensorSpec
from gristmill.errors import CompileError, InvalidInputError, RegistrationError, did_you_mean
from gristmill.record import record


@record
class Bounds:
    """How far an output may be from the float64 reference, element by element:

        |out - ref| <= rtol * |ref| + gamma * magnitude + atol

    `rtol` is the rounding of the result to its dtype, `gamma` the accumulated rounding in units of
    the op's `magnitude` (what the sum would be with no cancellation), `atol` the dtype's underflow;
    `reason` says why so much.
    """

    rtol: float
    gamma: float
    atol: float
    reason: str


def each_bounds(bounds: Bounds | Sequence[Bounds], count: int) -> tuple[Bounds, ...]:
    """The bounds of each of `count` outputs, from what `Op.bounds` gives: one holds for all.

    Raises:
        RegistrationError: bounds of another number of outputs.
    """
    if isinstance(bounds, Bounds):
        return (bounds,) * count
    if len(bounds) != count:
        raise RegistrationError(
            f"an op's `bounds` are {len(bounds)} and its reference has {count} outputs; they need "
            "one `Bounds` for all outputs, or one for each. Return as many."
        )
    return tuple(bounds)


def _no_forms(problem: Problem) -> Mapping[str, Problem]:
    del problem
    return {}


@record(eq=False)
class Workload:
    """A named problem that people have (a layer of a real model), or an adversarial one."""

    name: str
    problem: Problem


@record
class Cost:
    """What the op must do at least: floating-point operations, and bytes with every input read and
    output written once. `arithmetic` names what the operations are in where that is not the first
    tensor's dtype: `tf32`."""

    flops: int
    size_bytes: int
    arithmetic: str = ""


@record(eq=False, slots=False)
class Op:
    """A contract.

    Attributes:
        schema: torch schema string: the one source of names, order, defaults and mutation.
        check: raises `InvalidInputError` where the arguments (schema order) break the contract.
            Types, devices and dtypes in `dtypes` are checked before it.
        reference: plain torch, differentiable, dtype-generic (in float64: the truth).
        magnitude: the reference without cancellation (see `Bounds`), on float64 arguments.
        inputs: `(problem, generator, variant) -> arguments`: real values on the generator's device.
        variants: the value variants that `inputs` knows, the usual one first.
        outputs: what is returned, as specs.
        axes: the problem's named sizes, exact or bucketed.
        cost: flops and bytes.
        bounds: error bounds: one `Bounds` for all outputs, or one for each (`each_bounds`).
        workloads: named problems.
        dtypes: dtypes that tensor arguments may have.
        own_dtypes: by name, those of arguments that may have others (positions are integers, tables
            stay in float32 beside bfloat16); autocast leaves these arguments as they are.
        matrix: whether the flops run on matrix units (for the roofline).
        sized: `(sizes by axis name, dtype name) -> problem`: the plain problem of these sizes, from
            which the conformance suite makes its adversarial ones.
        forms: `problem -> problems by name`: the same sizes in the op's other forms (another set of
            optional arguments, a flag switched), which the conformance suite varies too.
        gradients: where the derivatives come from. With none, a call that needs one runs the
            reference, which torch differentiates.
        autocast: what tensor arguments are cast to under `torch.autocast`: `lower` its dtype
            (matrix products), `first` the dtype of the first one (whoever computes in float32
            anyway).
    """

    schema: str
    check: Callable[..., None]
    reference: Callable[..., Any]
    magnitude: Callable[..., Any]
    inputs: Callable[[Problem, torch.Generator, str], tuple[Any, ...]]
    outputs: Callable[[Problem], tuple[TensorSpec, ...]]
    axes: Callable[[Problem], tuple[Axis, ...]]
    cost: Callable[[Problem], Cost]
    bounds: Callable[[Problem], Bounds | tuple[Bounds, ...]]
    workloads: tuple[Workload, ...]
    variants: tuple[str, ...] = ("normal",)
    dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16, torch.float32)
    own_dtypes: Mapping[str, tuple[torch.dtype, ...]] = field(default_factory=dict)
    matrix: bool = False
    sized: Callable[[Mapping[str, int], str], Problem] | None = None
    forms: Callable[[Problem], Mapping[str, Problem]] = _no_forms
    gradients: tuple[Gradient, ...] = ()
    autocast: Literal["lower", "first"] = "first"

    @cached_property
    def parsed(self) -> Any:
        """The schema as torch parses it."""
        try:
            return torch._C.parse_schema(f"gristmill::{self.schema}")
        except RuntimeError as error:
            raise RegistrationError(
                f"the schema {self.schema!r} does not parse: {error}"
            ) from error

    @cached_property
    def name(self) -> str:
        return self.parsed.name.removeprefix("gristmill::")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The arguments' names, in order."""
        return tuple(a.name for a in self.parsed.arguments)

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """The outputs' names: the schema's, else `out` (`out_0`, `out_1` of several)."""
        returns = self.parsed.returns
        several = len(returns) > 1
        return tuple(r.name or (f"out_{i}" if several else "out") for i, r in enumerate(returns))

    def matrix_arithmetic(self, problem: Problem) -> str | None:
        """What the matrix units compute a problem in (a dtype's name, or `tf32`); `None` off
        them."""
        if not self.matrix:
            return None
        return self.cost(problem).arithmetic or next(iter(problem.tensors.values())).dtype

    @cached_property
    def axis_names(self) -> tuple[str, ...]:
        """The names of the problem's sizes, in order."""
        return tuple(axis.name for axis in self.axes(self.workloads[0].problem))

    @cached_property
    def signature(self) -> inspect.Signature:
        """The schema as a Python signature."""
        kind = inspect.Parameter
        return inspect.Signature(
            [
                kind(
                    a.name,
                    kind.KEYWORD_ONLY if a.kwarg_only else kind.POSITIONAL_OR_KEYWORD,
                    default=a.default_value if a.has_default_value() else kind.empty,
                )
                for a in self.parsed.arguments
            ]
        )

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """The arguments of a call in the schema's order, checked.

        Raises:
            InvalidInputError: names the argument, what it was, what is allowed and what to do.
        """
        try:
            bound = self.signature.bind(*args, **(kwargs or {}))
        except TypeError as error:
            unknown = [k for k in kwargs or {} if k not in self.names]
            hint = did_you_mean(unknown[0], self.names) if unknown else ""
            raise InvalidInputError(
                f"`{self.name}`: {error}. Its signature is {self.schema}.{hint}"
            ) from None
        bound.apply_defaults()
        values = tuple(
            float(value) if str(argument.type) == "float" and type(value) is int else value
            for argument, value in zip(self.parsed.arguments, bound.arguments.values(), strict=True)
        )
        self.validate(values)
        return values

    def validate(self, values: Sequence[Any]) -> None:
        """Check arguments in the schema's order: types, device, dtype, then the op's own rules."""
        self.check_types(values)
        first: tuple[str, torch.Tensor] | None = None
        for name, value in zip(self.names, values, strict=True):
            if not isinstance(value, torch.Tensor):
                continue
            dtypes = self.own_dtypes.get(name, self.dtypes)
            if value.dtype not in dtypes:
                allowed = ", ".join(str(d) for d in dtypes)
                raise InvalidInputError(
                    f"`{name}` has dtype {value.dtype}; `{self.name}` takes {allowed}. Convert "
                    f"it with `{name}.to(...)`."
                )
            if value.is_neg() or value.is_conj():
                raise InvalidInputError(
                    f"`{name}` is a lazily negated or conjugated view; `{self.name}` reads memory "
                    f"as it is. Call `{name}.resolve_conj().resolve_neg()`."
                )
            if value.layout is not torch.strided:
                raise InvalidInputError(
                    f"`{name}` has layout {value.layout}; `{self.name}` takes strided tensors. "
                    f"Call `{name}.to_dense()`."
                )
            if first is None:
                first = (name, value)
            elif value.device != first[1].device:
                raise InvalidInputError(
                    f"`{name}` is on {value.device} and `{first[0]}` on {first[1].device}; "
                    f"`{self.name}` needs one device. "
                    f"Call `{name}.to({str(first[1].device)!r})`."
                )
        self.check(*values)

    def check_types(self, values: Sequence[Any]) -> None:
        """Check that each argument is of its type in the schema."""
        for argument, value in zip(self.parsed.arguments, values, strict=True):
            _check_type(self.name, argument.name, str(argument.type), value)

    def check_outputs(self, values: Sequence[Any], result: Any) -> None:
        """Check that what an implementation returned is laid out as `outputs` declares.

        Raises:
            CompileError: another shape or dtype, other strides, or an address off 16 bytes.
        """
        specs = self.outputs(self.problem(values))
        for name, spec, tensor in zip(self.output_names, specs, as_tuple(result), strict=True):
            given = TensorSpec.of(tensor)
            if not given.lies_as(spec):
                raise CompileError(
                    f"`{self.name}` returned `{name}` as {given}; the op declares {spec}, and "
                    "compiled graphs rely on it. Mend the implementation that the op's plan names."
                )

    def problem(self, values: Sequence[Any]) -> Problem:
        return Problem.of(self.name, self.names, values)

    def bucket(self, problem: Problem) -> Bucket:
        return Bucket.of(problem, self.axes(problem))

    def device(self, values: Sequence[Any]) -> torch.device:
        """The device of the (first) tensor argument."""
        return next(v.device for v in values if isinstance(v, torch.Tensor))

    def workload(self, name: str) -> Workload:
        for workload in self.workloads:
            if workload.name == name:
                return workload
        known = [w.name for w in self.workloads]
        raise InvalidInputError(
            f"`workload` is {name!r}; `{self.name}` has {', '.join(known)}. Choose "
            f"one.{did_you_mean(name, known)}"
        )


def _check_type(op: str, name: str, declared: str, value: Any) -> None:
    if declared.startswith("Optional["):
        if value is None:
            return
        declared = declared.removeprefix("Optional[").removesuffix("]")
    expected = {
        "Tensor": torch.Tensor,
        "float": (int, float, torch.SymInt, torch.SymFloat),
        "int": (int, torch.SymInt),
        "bool": bool,
        "str": str,
    }.get(declared)
    wrong_bool = isinstance(value, bool) and declared in ("int", "float")
    if expected is not None and (not isinstance(value, expected) or wrong_bool):
        raise InvalidInputError(
            f"`{name}` is {type(value).__name__}; `{op}` needs "
            f"{'a tensor' if declared == 'Tensor' else declared}. "
            f"Pass {'a torch.Tensor' if declared == 'Tensor' else f'a Python {declared}'}."
        )


def as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    """An op's result as a tuple, however many outputs it has."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
