"""silu_and_mul: `out = silu(gate) * up`, `silu(z) = z / (1 + exp(-z))`: the gate of a gated MLP
(Shazeer, 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from gristmill.core.gradient import Gradient, dense
from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Axis, Problem, TensorSpec
from gristmill.core.registry import declare
from gristmill.errors import InvalidInputError
from gristmill.specs._rows import check_like, check_rows, normal

ROUNDINGS = 12  # of float32: an approximate exponential (3) and quotient (4), a sum, two products
VARIANTS = ("normal", "tails", "large", "zeros", "nonfinite")
FLOOR = 2.0**-105  # in units of ROUNDINGS * 2^-24: a sigmoid below 2^-126 may be flushed


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


def check(x: torch.Tensor, up: torch.Tensor | None = None) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: a 0-D `x`, a last dimension that is not dense, or of odd size without
            `up`; an `up` that does not fit `x`.
    """
    check_operands("silu_and_mul", x, up)


def halves(x: torch.Tensor, up: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up: the halves of `x` where `up` is None."""
    if up is not None:
        return x, up
    width = x.shape[-1] // 2
    return x[..., :width], x[..., width:]


def reference(x: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """float32 inside (float64 for float64), one rounding, a contiguous result."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    gate, other = (half.to(dtype) for half in halves(x, up))
    return (torch.nn.functional.silu(gate) * other).to(x.dtype).contiguous()


def sensitivity(gate: torch.Tensor) -> torch.Tensor:
    """What a relative change of the gate moves `silu` by, relatively: far below zero, the rounding
    of the exponential's argument is as many times larger in its value."""
    return 1 + gate.abs() * torch.sigmoid(-gate)


def silu_magnitude(gate: torch.Tensor) -> torch.Tensor:
    """`|silu|` times its sensitivity, and the gate times what the sigmoid may be flushed by."""
    return gate.abs() * (torch.sigmoid(gate) * sensitivity(gate) + FLOOR)


def magnitude(x: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """The result's own size, times its sensitivity to the gate."""
    gate, other = halves(x, up)
    return silu_magnitude(gate) * other.abs()


def sizes(problem: Problem) -> tuple[int, int]:
    """Rows, and columns of the gate."""
    shape = problem["x"].shape
    return math.prod(shape[:-1]), shape[-1] if problem["up"] is not None else shape[-1] // 2


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    x = problem["x"]
    return (TensorSpec.contiguous((*x.shape[:-1], sizes(problem)[1]), x.dtype),)


def axes(problem: Problem) -> tuple[Axis, ...]:
    rows, width = sizes(problem)
    return (Axis("rows", rows, exact=False), Axis("N", width))


def cost(problem: Problem) -> Cost:
    rows, width = sizes(problem)
    return Cost(flops=5 * rows * width, size_bytes=3 * rows * width * problem["x"].itemsize)


def rounding(problem: Problem, roundings: int, cancels: str = "") -> Bounds:
    """The bounds of one rounding to the dtype and so many of float32."""
    x = problem["x"]
    info = torch.finfo(x.torch_dtype)
    return Bounds(
        rtol=info.eps / 2,
        gamma=roundings * 2.0**-24,
        atol=info.smallest_normal * info.eps + 4 * torch.finfo(torch.float32).smallest_normal,
        reason=f"one rounding to {x.dtype}; {roundings} of float32, of which the exponential's "
        f"argument counts as often as the gate is large; {cancels}a sigmoid below 2^-126 may be "
        "flushed",
    )


def bounds(problem: Problem) -> Bounds:
    return rounding(problem, ROUNDINGS)


def operands(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`x` and `up` of a variant (see `inputs`)."""
    x = normal(problem["x"], generator)
    other = None if problem["up"] is None else normal(problem["up"], generator)
    gate, up = halves(x, other)
    if gate.numel():
        if variant == "tails":
            gate.copy_(torch.linspace(-100, 100, gate.numel(), device=x.device).view(gate.shape))
        elif variant == "large":
            factor = 2.0**12 if x.dtype == torch.float16 else 2.0**40
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
    filled = None if other is None else problem["up"].fill(other)
    return problem["x"].fill(x), filled


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Operands of the problem's layout. Variants: `normal`; `tails` (gates from -100 to 100: past
    where `exp` overflows float32); `large` (gates and ups of 2^40, float16: 2^12); `zeros` (a
    third of the gates 0, another third of the ups); `nonfinite` (infinite gates of both signs, a
    NaN)."""
    return operands(problem, generator, variant)


def two_tensors(problem: Problem) -> dict[str, Problem]:
    """The same sizes with `up` in a tensor of its own."""
    half = outputs(problem)[0]
    args = tuple((n, half if n in ("x", "up") else v) for n, v in problem.args)
    return {"two-tensors": Problem(problem.op, args)}


def problem_of(shape: tuple[int, ...], dtype: str = "bfloat16", packed: bool = True) -> Problem:
    """The problem of contiguous gates of this shape."""
    x = TensorSpec.contiguous((*shape[:-1], 2 * shape[-1]), dtype)
    problem = Problem("silu_and_mul", (("x", x), ("up", None)))
    return problem if packed else two_tensors(problem)["two-tensors"]


def large_workloads(problem: Callable[..., Problem]) -> tuple[Workload, ...]:
    """The workloads of both directions, by the `problem_of` of one."""
    return (
        Workload("llama3-8b-m4096", problem((4096, 14336))),
        Workload("8192x8192", problem((8192, 8192))),
        Workload("8192x14336", problem((8192, 14336))),
        Workload("8192x14336-two-tensors", problem((8192, 14336), packed=False)),
        Workload("8192x8192-fp16", problem((8192, 8192), "float16")),
        Workload("8192x8192-fp32", problem((8192, 8192), "float32")),
        Workload("qwen3-30b-expert-4096x768", problem((4096, 768))),
        Workload("odd-1023x4097", problem((1023, 4097))),
        Workload("odd-1023x4097-two-tensors", problem((1023, 4097), packed=False)),
    )


WORKLOADS = (
    *(Workload(f"llama3-8b-m{m}", problem_of((m, 14336))) for m in (1, 16, 64, 512)),
    *large_workloads(problem_of),
)

OP = declare(
    Op(
        schema="silu_and_mul(Tensor x, Tensor? up=None) -> Tensor",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=VARIANTS,
        outputs=outputs,
        axes=axes,
        cost=cost,
        bounds=bounds,
        workloads=WORKLOADS,
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        forms=two_tensors,
        gradients=(
            Gradient(
                "silu_and_mul_backward",
                ("x", "up"),
                lambda grad_out, x, up: (dense(grad_out), x, up),
            ),
        ),
    )
)
