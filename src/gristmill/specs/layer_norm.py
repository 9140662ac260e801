"""layer_norm: `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias` (Ba, Kiros and Hinton,
2016)."""

from __future__ import annotations

import torch

from gristmill.core.gradient import Gradient, dense
from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import declare
from gristmill.specs import rms_norm
from gristmill.specs._rows import check_eps, check_rows, check_weight, normal, scale

VARIANTS = ("normal", "small", "offset", "large", "constant", "nonfinite")
SECOND_ORDER = 2.0**-20  # of the size of a row's terms: what their rounding may be


def check(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: a 0-D `x`, a last dimension that is not dense, a `weight` or `bias` that
            does not fit, a bad `eps`.
    """
    check_affine("layer_norm", x, weight, bias, eps)


def check_affine(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> None:
    """The contract of an op that normalises the rows of `x`, scales and shifts them."""
    check_rows(op, "x", x)
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_weight(op, vector, x, name)
    check_eps(op, eps)


def reference(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """float32 inside (float64 for float64), one rounding, a contiguous result. The variance is the
    mean square of what is left of a row less its mean."""
    y, _ = normalised(x, eps)
    if weight is not None:
        y = y * weight.to(y.dtype)
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y.to(x.dtype).contiguous()


def normalised(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of mean 0 and variance 1, in float32 or float64, and what they were multiplied by."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return centred * rstd, rstd


def sizes_of_terms(x: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """Of each normalised value: what its two terms, the value and the mean, add up to in size."""
    return (x.abs() + x.abs().mean(-1, keepdim=True)) * rstd


def magnitude(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """The sum of the terms' absolute values: a value less the mean cancels, the variance does
    not."""
    _, rstd = normalised(x, eps)
    size = sizes_of_terms(x, rstd)
    if weight is not None:
        size = size * weight.abs()
    return size if bias is None else size + bias.abs()


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec.contiguous(problem["x"].shape, problem["x"].dtype),)


def cost(problem: Problem) -> Cost:
    x, vectors = problem["x"], [v for v in (problem["weight"], problem["bias"]) if v is not None]
    return Cost(
        flops=(6 + len(vectors)) * x.numel,
        size_bytes=2 * x.size_bytes + sum(v.size_bytes for v in vectors),
    )


def bounds(problem: Problem) -> Bounds:
    x = problem["x"]
    info = torch.finfo(x.torch_dtype)
    return Bounds(
        rtol=info.eps / 2,
        gamma=steps(x.shape[-1]) * 2.0**-24,
        atol=info.smallest_normal * info.eps + 2 * torch.finfo(torch.float32).smallest_normal,
        reason=f"one rounding to {x.dtype}; a float32 mean of {x.shape[-1]} values by at least 64 "
        "lanes, another of their squares that is halved by the root, an approximate reciprocal "
        "root, two differences and two products; float32 below 2^-126 may be flushed",
    )


def steps(width: int) -> float:
    """Roundings of float32 one after the other, up to a normalised value of a row."""
    mean = width / 64 + 4
    return mean + mean / 2 + 4 + 6


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, float]:
    """Rows of the problem's layout. Variants: `normal`; `small` (variance near `eps`: where `eps`
    stands matters); `offset` (a mean of 10,000 and a spread of 1, 1,000 in 16 bits: a variance by
    the difference of two squares is noise); `large` (squares far outside float16); `constant` (rows
    of one value each, every other one 0); `nonfinite` (a row of inf, and a row with one NaN)."""
    x = normal(problem["x"], generator)
    if x.numel():
        x = vary(x, variant, max(problem["eps"], 1e-12))
    weight, bias = scale(problem["weight"], generator), shift(problem["bias"], generator)
    return problem["x"].fill(x), weight, bias, problem["eps"]


def vary(x: torch.Tensor, variant: str, eps: float) -> torch.Tensor:
    """Normal rows made into those of a variant (see `inputs`)."""
    if variant == "offset":
        return x + (1e4 if x.dtype in (torch.float32, torch.float64) else 1e3)
    if variant == "constant":
        return rms_norm.vary(x[..., :1].expand_as(x).clone(), "zeros", eps)
    return rms_norm.vary(x, variant, eps)


def shift(spec: TensorSpec | None, generator: torch.Generator) -> torch.Tensor | None:
    """A bias around 0, or `None` where there is none."""
    return None if spec is None else spec.fill(normal(spec, generator))


def problem_of(
    shape: tuple[int, ...],
    dtype: str = "bfloat16",
    weight: bool = True,
    bias: bool = True,
    eps: float = 1e-5,
) -> Problem:
    """The problem of a contiguous `x` of this shape."""
    vector = TensorSpec.contiguous(shape[-1:], dtype)
    args = {
        "x": TensorSpec.contiguous(shape, dtype),
        "weight": vector if weight else None,
        "bias": vector if bias else None,
        "eps": eps,
    }
    return Problem("layer_norm", tuple(args.items()))


WORKLOADS = (
    *(Workload(f"gpt3-6.7b-m{m}", problem_of((m, 4096))) for m in (1, 16, 64, 4096)),
    *(
        Workload(f"{m}x{n}", problem_of((m, n)))
        for m, n in ((16384, 4096), (8192, 8192), (32768, 1024), (2048, 16384))
    ),
    Workload("16384x4096-fp16", problem_of((16384, 4096), "float16")),
    Workload("16384x4096-fp32", problem_of((16384, 4096), "float32")),
    Workload("16384x4096-no-affine", problem_of((16384, 4096), weight=False, bias=False)),
    Workload("vit-l-256x197x1024", problem_of((256, 197, 1024))),
    Workload("bert-base-32x512x768", problem_of((32, 512, 768))),
    Workload("odd-1023x4097", problem_of((1023, 4097))),
    Workload("wide-64x65536", problem_of((64, 65536))),
)

OP = declare(
    Op(
        schema="layer_norm(Tensor x, Tensor? weight=None, Tensor? bias=None, float eps=1e-05) -> "
        "Tensor",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=VARIANTS,
        outputs=outputs,
        axes=rms_norm.axes,
        cost=cost,
        bounds=bounds,
        workloads=WORKLOADS,
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        gradients=(
            Gradient(
                "layer_norm_backward",
                ("x", "weight", "bias"),
                lambda grad_out, x, weight, eps, needs_weight, needs_bias: (
                    dense(grad_out),
                    x,
                    weight,
                    eps,
                    needs_weight,
                    needs_bias,
                ),
            ),
        ),
    )
)
