"""add_layer_norm: `new_residual = x + residual`, `out = layer_norm(new_residual)` (Ba, Kiros and
Hinton, 2016): a residual connection and the normalisation behind it.

The norm is of the *rounded* sum, as where the sum is a tensor: then the second result says all that
the first was made of, whoever computes it, and is all that the backward pass needs.
"""

from __future__ import annotations

import torch

from gristmill.core.gradient import Gradient, dense
from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Problem
from gristmill.core.registry import declare
from gristmill.specs import layer_norm, rms_norm
from gristmill.specs._rows import check_like, normal

NAME = "add_layer_norm"


def check(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: a 0-D `x`, a last dimension that is not dense, a `residual`, `weight` or
            `bias` that does not fit `x`, a bad `eps`.
    """
    layer_norm.check_affine(NAME, x, weight, bias, eps)
    check_like(NAME, "residual", residual, x, tuple(x.shape), "the shape of `x`")


def reference(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum rounded once, its norm as in `layer_norm`, contiguous results."""
    total = (x + residual).contiguous()
    return layer_norm.reference(total, weight, bias, eps), total


def magnitude(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """That of `layer_norm`, of the sum; the sum's own size: its terms are exact."""
    total = x + residual
    return layer_norm.magnitude(total, weight, bias, eps), total.abs()


def cost(problem: Problem) -> Cost:
    alone, x = layer_norm.cost(problem), problem["x"]
    return Cost(flops=alone.flops + x.numel, size_bytes=alone.size_bytes + 2 * x.size_bytes)


def bounds(problem: Problem) -> tuple[Bounds, Bounds]:
    x, norm = problem["x"], layer_norm.bounds(problem)
    info = torch.finfo(x.torch_dtype)
    return (
        Bounds(
            rtol=norm.rtol,
            gamma=norm.gamma + info.eps,
            atol=norm.atol,
            reason=f"the sum rounded to {x.dtype}, in a value, the mean and the root of the "
            f"squares; then {norm.reason}",
        ),
        Bounds(
            rtol=info.eps / 2,
            gamma=2.0**-24,
            atol=2 * torch.finfo(torch.float32).smallest_normal,
            reason=f"a float32 sum, rounded to {x.dtype}",
        ),
    )


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, float]:
    """Rows of the problem's layouts. Variants: those of `layer_norm`, of both terms of the sum; of
    `offset`, one alone has the large mean."""
    x, weight, bias, eps = layer_norm.inputs(problem, generator, variant)
    residual = normal(problem["residual"], generator)
    if residual.numel():
        kind = "normal" if variant == "offset" else variant
        residual = layer_norm.vary(residual, kind, max(eps, 1e-12))
    return x, problem["residual"].fill(residual), weight, bias, eps


def problem_of(
    shape: tuple[int, ...],
    dtype: str = "bfloat16",
    weight: bool = True,
    bias: bool = True,
    eps: float = 1e-5,
) -> Problem:
    """The problem of a contiguous `x` of this shape and as contiguous a residual."""
    x, *rest = layer_norm.problem_of(shape, dtype, weight, bias, eps).args
    return Problem(NAME, (x, ("residual", x[1]), *rest))


WORKLOADS = (
    *(Workload(f"gpt3-6.7b-m{m}", problem_of((m, 4096))) for m in (1, 16, 64)),
    *(
        Workload(f"{m}x{n}", problem_of((m, n)))
        for m, n in ((16384, 4096), (8192, 8192), (32768, 1024))
    ),
    Workload("16384x4096-fp16", problem_of((16384, 4096), "float16")),
    Workload("16384x4096-fp32", problem_of((16384, 4096), "float32")),
    Workload("vit-l-256x197x1024", problem_of((256, 197, 1024))),
    Workload("bert-base-32x512x768", problem_of((32, 512, 768))),
    Workload("odd-1023x4097", problem_of((1023, 4097))),
    Workload("wide-64x65536", problem_of((64, 65536))),
)

OP = declare(
    Op(
        schema="add_layer_norm(Tensor x, Tensor residual, Tensor? weight=None, "
        "Tensor? bias=None, float eps=1e-05) -> (Tensor out, Tensor new_residual)",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=layer_norm.VARIANTS,
        outputs=lambda problem: layer_norm.outputs(problem) * 2,
        axes=rms_norm.axes,
        cost=cost,
        bounds=bounds,
        workloads=WORKLOADS,
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        gradients=(
            Gradient(
                "add_layer_norm_backward",
                ("x", "residual", "weight", "bias"),
                lambda grad_out, grad_new_residual, new_residual, weight, eps, needs_weight, needs_bias: (  # noqa: E501 - a name each
                    dense(grad_out),
                    dense(grad_new_residual),
                    new_residual,
                    weight,
                    eps,
                    needs_weight,
                    needs_bias,
                ),
                # One tensor is the gradient of both terms of the sum.
                lambda made: (made[0], *made),
            ),
        ),
    )
)
