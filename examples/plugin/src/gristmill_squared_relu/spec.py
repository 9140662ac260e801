"""squared_relu: `out = max(x, 0)**2` (So et al., "Primer", 2021)."""

from __future__ import annotations

import torch

from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Axis, Problem, TensorSpec
from gristmill.core.registry import declare
from gristmill.errors import InvalidInputError


def check(x: torch.Tensor) -> None:
    if not x.is_contiguous():
        raise InvalidInputError(
            f"`x` has shape {tuple(x.shape)} and strides {tuple(x.stride())}; `squared_relu` needs "
            "a contiguous tensor. Call `x.contiguous()`."
        )


def reference(x: torch.Tensor) -> torch.Tensor:
    """float32 inside (float64 for float64), one rounding."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.relu().square().to(x.dtype)


def inputs(problem: Problem, generator: torch.Generator, variant: str) -> tuple[torch.Tensor]:
    """Variants: `normal`; `large` (squares past float16); `nonfinite` (an inf and a NaN)."""
    spec = problem["x"]
    x = torch.randn(
        spec.shape, generator=generator, device=generator.device, dtype=spec.torch_dtype
    )
    if variant == "large":
        x = x * 2.0**9
    if variant == "nonfinite" and x.numel():
        flat = x.view(-1)
        flat[0], flat[-1] = torch.inf, torch.nan
    return (spec.fill(x),)


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec.contiguous(problem["x"].shape, problem["x"].dtype),)


def bounds(problem: Problem) -> Bounds:
    info = torch.finfo(problem["x"].torch_dtype)
    return Bounds(
        rtol=info.eps / 2,
        gamma=2.0**-24,
        atol=info.smallest_normal * info.eps + torch.finfo(torch.float32).smallest_normal,
        reason=f"a float32 square, rounded to {problem['x'].dtype}; subnormals may be flushed",
    )


def problem_of(tokens: int, width: int, dtype: str = "bfloat16") -> Problem:
    return Problem("squared_relu", (("x", TensorSpec.contiguous((tokens, width), dtype)),))


OP = declare(
    Op(
        schema="squared_relu(Tensor x) -> Tensor",
        check=check,
        reference=reference,
        magnitude=reference,
        inputs=inputs,
        variants=("normal", "large", "nonfinite"),
        outputs=outputs,
        axes=lambda problem: (Axis("elements", problem["x"].numel, exact=False),),
        cost=lambda problem: Cost(2 * problem["x"].numel, 2 * problem["x"].size_bytes),
        bounds=bounds,
        workloads=tuple(
            Workload(f"llama3-8b-m{tokens}", problem_of(tokens, 14336))
            for tokens in (1, 64, 512, 4096)
        ),
        sized=lambda sizes, dtype: problem_of(1, sizes["elements"], dtype),
    )
)
