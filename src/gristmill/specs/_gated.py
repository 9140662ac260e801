"""What the contracts of gated activations share: `out = activation(gate) * up` of the halves of one
tensor, or of two tensors, and its gradients (Shazeer, 2020):

    grad_gate = grad_out * up * slope(gate)
    grad_up = grad_out * activation(gate)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from gristmill.core.gradient import Gradient, dense
from gristmill.core.op import Cost, Op, Workload
from gristmill.core.problem import Axis, Problem, TensorSpec
from gristmill.errors import InvalidInputError
from gristmill.specs._activations import Choice
from gristmill.specs._rows import check_like, check_rows, normal

VARIANTS = ("normal", "tails", "large", "zeros", "nonfinite")
BACKWARD = "_backward"
Problems = Callable[..., Problem]


def check_operands(op: str, x: torch.Tensor, up: torch.Tensor | None) -> None:
    """Refuse an `x` that is not rows of two halves, or an `up` that is not like `x`."""
    check_rows(op, "x", x)
    if up is not None:
        check_like(op, "up", up, x, tuple(x.shape), "the shape of `x`")
    elif x.shape[-1] % 2:
        raise InvalidInputError(
            f"`x` has {x.shape[-1]} columns; `{op}` without `up` needs an even number, the gate's "
            "and then those of `up`. Pass both halves in `x`, or `up` as the second argument."
        )


def halves(x: torch.Tensor, up: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up: the halves of `x` where `up` is None."""
    if up is not None:
        return x, up
    width = x.shape[-1] // 2
    return x[..., :width], x[..., width:]


def sizes(problem: Problem) -> tuple[int, int]:
    """Rows, and columns of the gate."""
    shape = problem["x"].shape
    return math.prod(shape[:-1]), shape[-1] if problem["up"] is not None else shape[-1] // 2


def axes(problem: Problem) -> tuple[Axis, ...]:
    rows, width = sizes(problem)
    return (Axis("rows", rows, exact=False), Axis("N", width))


def result(problem: Problem) -> TensorSpec:
    """What the forward pass of a problem, or of its backward pass, returns."""
    x = problem["x"]
    return TensorSpec.contiguous((*x.shape[:-1], sizes(problem)[1]), x.dtype)


def set_values(gate: torch.Tensor, up: torch.Tensor, variant: str) -> None:
    """Make normal values those of a variant (see `operands`)."""
    if variant == "tails":
        gate.copy_(torch.linspace(-100, 100, gate.numel(), device=gate.device).view(gate.shape))
    elif variant == "large":
        factor = 2.0**12 if gate.dtype == torch.float16 else 2.0**40
        gate.mul_(factor)
        up.mul_(factor)
    elif variant == "zeros":
        gate[..., ::3] = 0
        up[..., 1::3] = 0
    elif variant == "nonfinite":
        # A row is the last but one where there are several, so that a kernel meets them inside.
        at = -2 if gate.dim() > 1 and gate.shape[0] > 1 else -1
        gate[..., 0] = torch.inf
        gate[at, ..., -1:] = -torch.inf
        up[at, ..., gate.shape[-1] // 2 :][..., :1] = torch.nan


def operands(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`x` and `up` of the problem's layout. Variants: `normal`; `tails` (gates from -100 to 100:
    past where `exp` overflows float32); `large` (gates and ups of 2^40, float16: 2^12); `zeros` (a
    third of the gates 0, another third of the ups); `nonfinite` (infinite gates of both signs, a
    NaN)."""
    x = normal(problem["x"], generator)
    other = None if problem["up"] is None else normal(problem["up"], generator)
    gate, up = halves(x, other)
    if gate.numel():
        set_values(gate, up, variant)
    filled = None if other is None else problem["up"].fill(other)
    return problem["x"].fill(x), filled


def two_tensors(problem: Problem) -> Problem:
    """The same sizes with `up` in a tensor of its own."""
    half = result(problem)
    args = tuple((n, half if n in ("grad_out", "x", "up") else v) for n, v in problem.args)
    return Problem(problem.op, args)


def problems(op: str, choice: Choice) -> Problems:
    """What makes an op's problems: of contiguous gates of a shape; `given` for the choice's
    argument."""

    def problem_of(
        shape: tuple[int, ...],
        dtype: str = "bfloat16",
        packed: bool = True,
        given: tuple[str, ...] = (),
    ) -> Problem:
        half = TensorSpec.contiguous(shape, dtype)
        x = TensorSpec.contiguous((*shape[:-1], 2 * shape[-1]), dtype)
        grad = (("grad_out", half),) if op.endswith(BACKWARD) else ()
        rest = ((choice.argument, given[0]),) if given else choice.default
        problem = Problem(op, (*grad, ("x", x), ("up", None), *rest))
        return problem if packed else two_tensors(problem)

    return problem_of


def forms(choice: Choice) -> Callable[[Problem], dict[str, Problem]]:
    return lambda problem: {"two-tensors": two_tensors(problem), **choice.others(problem)}


def gated_workloads(problem_of: Problems) -> tuple[Workload, ...]:
    """The sizes that every gate is measured at, in both directions."""
    return (
        Workload("8192x8192", problem_of((8192, 8192))),
        Workload("8192x14336", problem_of((8192, 14336))),
        Workload("8192x14336-two-tensors", problem_of((8192, 14336), packed=False)),
        Workload("8192x8192-fp16", problem_of((8192, 8192), "float16")),
        Workload("8192x8192-fp32", problem_of((8192, 8192), "float32")),
        Workload("odd-1023x4097", problem_of((1023, 4097))),
        Workload("odd-1023x4097-two-tensors", problem_of((1023, 4097), packed=False)),
    )


def gradient_arguments(choice: Choice) -> Callable[..., tuple[Any, ...]]:
    """The arguments of a backward op that takes what its forward op does, in a unit stride."""
    if choice.argument == "":
        return lambda grad_out, x, up: (dense(grad_out), x, up)
    assert choice.argument == "approximate"  # a gradient names what it keeps
    return lambda grad_out, x, up, approximate: (dense(grad_out), x, up, approximate)


def gated(name: str, choice: Choice, workloads: tuple[Workload, ...]) -> Op:
    """The contract `out = activation(gate) * up`."""

    def check(x: torch.Tensor, up: torch.Tensor | None = None, *given: str) -> None:
        check_operands(name, x, up)
        choice.check(name, *given)

    def reference(x: torch.Tensor, up: torch.Tensor | None = None, *given: str) -> torch.Tensor:
        """float32 inside (float64 for float64), one rounding, a contiguous result."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        gate, other = (half.to(dtype) for half in halves(x, up))
        return (choice.of(*given).value(gate) * other).to(x.dtype).contiguous()

    def magnitude(x: torch.Tensor, up: torch.Tensor | None = None, *given: str) -> torch.Tensor:
        gate, other = halves(x, up)
        return choice.of(*given).value_magnitude(gate) * other.abs()

    def cost(problem: Problem) -> Cost:
        rows, width = sizes(problem)
        flops = choice.in_problem(problem).flops[0] + 1
        return Cost(flops * rows * width, 3 * rows * width * problem["x"].itemsize)

    def inputs(problem: Problem, generator: torch.Generator, variant: str) -> tuple[Any, ...]:
        return (*operands(problem, generator, variant), *choice.given(problem))

    problem_of = problems(name, choice)
    return Op(
        schema=f"{name}(Tensor x, Tensor? up=None{choice.schema}) -> Tensor",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=VARIANTS,
        outputs=lambda problem: (result(problem),),
        axes=axes,
        cost=cost,
        bounds=lambda problem: choice.in_problem(problem).bounds(problem["x"], backward=False),
        workloads=workloads,
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        forms=forms(choice),
        gradients=(Gradient(name + BACKWARD, ("x", "up"), gradient_arguments(choice)),),
    )
