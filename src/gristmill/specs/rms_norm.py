"""rms_norm: `out = x / sqrt(mean(x**2) + eps) * weight` (Zhang and Sennrich, 2019)."""

from __future__ import annotations

import math

import torch

from gristmill.core.gradient import Gradient, dense
from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Axis, Problem, TensorSpec
from gristmill.core.registry import declare
from gristmill.specs._rows import check_eps, check_rows, check_weight, normal, scale


def check(x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: a 0-D `x`, a last dimension that is not dense, a `weight` that does not
            fit, a bad `eps`.
    """
    check_rows("rms_norm", "x", x)
    if weight is not None:
        check_weight("rms_norm", weight, x)
    check_eps("rms_norm", eps)


def reference(
    x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6
) -> torch.Tensor:
    """float32 inside (float64 for float64), one rounding, a contiguous result."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(wide.dtype)
    return y.to(x.dtype).contiguous()


def magnitude(
    x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6
) -> torch.Tensor:
    """The result's own size: a sum of squares has no cancellation."""
    return reference(x, weight, eps).abs()


def rows(problem: Problem) -> int:
    """How many rows are normalised."""
    return math.prod(problem["x"].shape[:-1])


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec.contiguous(problem["x"].shape, problem["x"].dtype),)


def axes(problem: Problem) -> tuple[Axis, ...]:
    return (Axis("rows", rows(problem), exact=False), Axis("N", problem["x"].shape[-1]))


def cost(problem: Problem) -> Cost:
    x, weight = problem["x"], problem["weight"]
    per_element = 4 if weight is not None else 3
    return Cost(
        flops=per_element * x.numel,
        size_bytes=2 * x.size_bytes + (weight.size_bytes if weight else 0),
    )


def bounds(problem: Problem) -> Bounds:
    x = problem["x"]
    info = torch.finfo(x.torch_dtype)
    steps = 8 + x.shape[-1] / 128
    return Bounds(
        rtol=info.eps / 2,
        gamma=steps * 2.0**-24,
        atol=info.smallest_normal * info.eps + 2 * torch.finfo(torch.float32).smallest_normal,
        reason=f"one rounding to {x.dtype}; a float32 sum of {x.shape[-1]} squares by at least 64 "
        "lanes, halved by the "
        "root, an approximate reciprocal root and two products; float32 below 2^-126 may be "
        "flushed",
    )


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor | None, float]:
    """Rows of the problem's layout. Variants: `normal`; `small` (mean square near `eps`: where
    `eps` stands matters); `offset` (large mean, tiny variance); `large` (squares far outside
    float16); `equal` (all rows alike); `zeros` (every other row 0); `nonfinite` (a row of inf, and
    a row with one NaN)."""
    x = normal(problem["x"], generator)
    if x.numel():
        x = vary(x, variant, max(problem["eps"], 1e-12))
    weight = scale(problem["weight"], generator)
    return problem["x"].fill(x), weight, problem["eps"]


def vary(x: torch.Tensor, variant: str, eps: float) -> torch.Tensor:
    """Normal rows made into those of a variant (see `inputs`)."""
    flat = x.reshape(-1, x.shape[-1])
    if variant == "small":
        flat = flat * math.sqrt(eps)
    elif variant == "offset":
        flat = 100 + flat / 100
    elif variant == "large":
        flat = flat * (2.0**12 if x.dtype == torch.float16 else 2.0**40)
    elif variant == "equal":
        flat = flat[:1].expand_as(flat).clone()
    elif variant == "zeros":
        flat[::2] = 0
    elif variant == "nonfinite":
        flat[0] = torch.inf
        flat[-1, flat.shape[1] // 2] = torch.nan
    return flat.reshape(x.shape)


def problem_of(
    shape: tuple[int, ...], dtype: str = "bfloat16", weight: bool = True, eps: float = 1e-6
) -> Problem:
    """The problem of a contiguous `x` of this shape."""
    specs = (
        TensorSpec.contiguous(shape, dtype),
        TensorSpec.contiguous(shape[-1:], dtype) if weight else None,
    )
    return Problem("rms_norm", (("x", specs[0]), ("weight", specs[1]), ("eps", eps)))


WORKLOADS = (
    *(Workload(f"llama3-8b-m{m}", problem_of((m, 4096))) for m in (1, 16, 64, 512, 4096)),
    *(
        Workload(f"{m}x{n}", problem_of((m, n)))
        for m, n in ((16384, 4096), (8192, 8192), (32768, 1024), (2048, 16384))
    ),
    Workload("16384x4096-fp16", problem_of((16384, 4096), "float16")),
    Workload("16384x4096-fp32", problem_of((16384, 4096), "float32")),
    Workload("16384x4096-no-weight", problem_of((16384, 4096), weight=False)),
    Workload("qk-norm-1x40x128", problem_of((1, 40, 128))),
    Workload("qk-norm-64x40x128", problem_of((64, 40, 128))),
    Workload("qk-norm-4096x40x128", problem_of((4096, 40, 128))),
    Workload("llama2-13b-m16384", problem_of((16384, 5120))),
    Workload("odd-1023x4097", problem_of((1023, 4097))),
    Workload("wide-64x65536", problem_of((64, 65536))),
)

OP = declare(
    Op(
        schema="rms_norm(Tensor x, Tensor? weight=None, float eps=1e-06) -> Tensor",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=("normal", "small", "offset", "large", "equal", "zeros", "nonfinite"),
        outputs=outputs,
        axes=axes,
        cost=cost,
        bounds=bounds,
        workloads=WORKLOADS,
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        gradients=(
            Gradient(
                "rms_norm_backward",
                ("x", "weight"),
                lambda grad_out, x, weight, eps, needs_weight: (
                    dense(grad_out),
                    x,
                    weight,
                    eps,
                    needs_weight,
                ),
            ),
        ),
    )
)
