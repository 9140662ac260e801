"""add_layer_norm_backward: the gradients of `add_layer_norm`, from those of both its results.

With `x` the new residual, which was normalised, `grad_x` is what `layer_norm_backward` gives plus
`grad_new_residual`, rounded once: the gradient of both terms of the sum. `grad_weight` and
`grad_bias` are those of `layer_norm_backward`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Problem
from gristmill.core.registry import declare
from gristmill.specs import layer_norm_backward as alone
from gristmill.specs._rows import check_like, normal

NAME = "add_layer_norm_backward"


def check(
    grad_out: torch.Tensor,
    grad_new_residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-5,
    weight_grad: bool = True,
    bias_grad: bool = True,
) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: a 0-D `x`, a last dimension that is not dense, a gradient or `weight`
            that does not fit `x`, a bad `eps`.
    """
    alone.check(grad_out, x, weight, eps, weight_grad, bias_grad)
    shape = tuple(x.shape)
    check_like(NAME, "grad_new_residual", grad_new_residual, x, shape, "the shape of `x`")


def reference(
    grad_out: torch.Tensor,
    grad_new_residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-5,
    weight_grad: bool = True,
    bias_grad: bool = True,
) -> alone.Gradients:
    """float32 inside (float64 for float64), one rounding of each result, contiguous results."""
    grad_x, *vectors = alone.wide_gradients(grad_out, x, weight, eps, weight_grad, bias_grad)
    return (grad_x + grad_new_residual).to(x.dtype).contiguous(), vectors[0], vectors[1]


def magnitude(
    grad_out: torch.Tensor,
    grad_new_residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-5,
    weight_grad: bool = True,
    bias_grad: bool = True,
) -> alone.Gradients:
    """The sums of the terms' absolute values."""
    grad_x, *vectors = alone.magnitude(grad_out, x, weight, eps, weight_grad, bias_grad)
    return grad_x + grad_new_residual.abs(), vectors[0], vectors[1]


def cost(problem: Problem) -> Cost:
    cost, x = alone.cost(problem), problem["x"]
    return Cost(flops=cost.flops + x.numel, size_bytes=cost.size_bytes + x.size_bytes)


def bounds(problem: Problem) -> tuple[Bounds, ...]:
    grad_x, *vectors = alone.bounds(problem)
    more = replace(
        grad_x,
        gamma=grad_x.gamma + 2.0**-24,
        reason=f"{grad_x.reason}; another gradient added in float32",
    )
    return more, *vectors


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float, bool, bool]:
    """Those of `layer_norm_backward`, and normal gradients of the new residual."""
    grad_out, x, weight, eps, *flags = alone.inputs(problem, generator, variant)
    more = problem["grad_new_residual"]
    return grad_out, more.fill(normal(more, generator)), x, weight, eps, flags[0], flags[1]


def problem_of(
    shape: tuple[int, ...],
    dtype: str = "bfloat16",
    weight: bool = True,
    weight_grad: bool = True,
    bias_grad: bool = True,
    eps: float = 1e-5,
) -> Problem:
    """The problem of a contiguous `x` of this shape and as contiguous gradients."""
    grad_out, *rest = alone.problem_of(shape, dtype, weight, weight_grad, bias_grad, eps).args
    return Problem(NAME, (grad_out, ("grad_new_residual", grad_out[1]), *rest))


WORKLOADS = (
    *(
        Workload(f"{m}x{n}", problem_of((m, n)))
        for m, n in ((16384, 4096), (8192, 8192), (32768, 1024))
    ),
    Workload("16384x4096-fp16", problem_of((16384, 4096), "float16")),
    Workload("16384x4096-fp32", problem_of((16384, 4096), "float32")),
    Workload("16384x4096-frozen", problem_of((16384, 4096), weight_grad=False, bias_grad=False)),
    Workload("vit-l-256x197x1024", problem_of((256, 197, 1024))),
    Workload("bert-base-32x512x768", problem_of((32, 512, 768))),
    Workload("odd-1023x4097", problem_of((1023, 4097))),
)

OP = declare(
    Op(
        schema="add_layer_norm_backward(Tensor grad_out, Tensor grad_new_residual, Tensor x, "
        "Tensor? weight=None, float eps=1e-05, bool weight_grad=True, bool bias_grad=True) "
        "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=alone.OP.variants,
        outputs=alone.outputs,
        axes=alone.axes,
        cost=cost,
        bounds=bounds,
        workloads=WORKLOADS,
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        forms=alone.forms,
    )
)
