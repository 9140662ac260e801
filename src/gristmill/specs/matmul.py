"""matmul: `out[m, n] = sum_k a[m, k] * b[k, n]`, accumulated in float32."""

from __future__ import annotations

import torch

from gristmill.core.gradient import Gradient, dense
from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Axis, Problem, TensorSpec
from gristmill.core.registry import declare
from gristmill.errors import InvalidInputError

# Adds that a kernel chains before it rounds: matrix units take 16 products a step, a vectorised
# float32 loop has 16 lanes.
CHAIN = 16


def check(a: torch.Tensor, b: torch.Tensor) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: not 2-D, inner sizes that differ, mixed dtypes, or an operand without a
            unit stride.
    """
    for name, tensor in (("a", a), ("b", b)):
        if tensor.dim() != 2:
            raise InvalidInputError(
                f"`{name}` has shape {tuple(tensor.shape)}; `matmul` takes 2-D operands. "
                f"Call `{name}.reshape(rows, columns)`, or `torch.matmul` for batches."
            )
    if a.dtype != b.dtype:
        raise InvalidInputError(
            f"`b` has dtype {b.dtype} and `a` {a.dtype}; `matmul` needs one dtype. Call "
            f"`b.to({a.dtype})`."
        )
    if a.shape[1] != b.shape[0]:
        hint = " Did you mean `b.t()`?" if a.shape[1] == b.shape[1] else " Pass matching operands."
        raise InvalidInputError(
            f"`b` has shape {tuple(b.shape)} and `a` {tuple(a.shape)}; `matmul` needs as many rows "
            "of `b` as columns "
            f"of `a`.{hint}"
        )
    for name, tensor in (("a", a), ("b", b)):
        if 1 not in tensor.stride() and all(size > 1 for size in tensor.shape):
            raise InvalidInputError(
                f"`{name}` has strides {tuple(tensor.stride())}; `matmul` needs stride 1 along one "
                "of its two "
                f"dimensions. Call `{name}.contiguous()`."
            )


def reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What torch computes: float32 accumulation (float64 for float64), one rounding."""
    return a @ b


def magnitude(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The sum with no cancellation."""
    return a.abs() @ b.abs()


def sizes(problem: Problem) -> tuple[int, int, int]:
    """M, N and K."""
    (m, k), (_, n) = problem["a"].shape, problem["b"].shape
    return m, n, k


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    m, n, _ = sizes(problem)
    return (TensorSpec.contiguous((m, n), problem["a"].dtype),)


def axes(problem: Problem) -> tuple[Axis, ...]:
    m, n, k = sizes(problem)
    return (Axis("M", m, exact=False), Axis("N", n), Axis("K", k))


def cost(problem: Problem) -> Cost:
    m, n, k = sizes(problem)
    return Cost(flops=2 * m * n * k, size_bytes=(m * k + k * n + m * n) * problem["a"].itemsize)


def bounds(problem: Problem) -> Bounds:
    _, _, k = sizes(problem)
    info = torch.finfo(problem["a"].torch_dtype)
    steps = 4 + k / CHAIN
    return Bounds(
        rtol=info.eps / 2,
        gamma=steps * 2.0**-23,
        atol=info.smallest_normal * info.eps + (1 + k) * torch.finfo(torch.float32).smallest_normal,
        reason=f"one rounding to {problem['a'].dtype}; float32 accumulation that truncates at each "
        "of "
        f"{k}/{CHAIN} steps; float32 products below 2^-126 may be flushed",
    )


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands of the problem's layout. Variants: `normal`; `positive` (no cancellation: the sums
    are long and biased); `range` (columns of `a` and rows of `b` scaled from 2^-4 to 2^4);
    `nonfinite` (a few inf and NaN)."""
    a, b = (_values(problem[name], generator, variant) for name in ("a", "b"))
    if variant == "range" and a.shape[1]:
        exponents = torch.randint(
            -4, 5, (a.shape[1],), generator=generator, device=generator.device
        )
        scale = torch.exp2(exponents.to(torch.float32)).to(a.dtype)
        a, b = a * scale, b / scale.flip(0)[:, None]
    if variant == "nonfinite" and a.numel() and b.numel():
        a[a.shape[0] // 2, 0] = torch.inf
        a[-1, a.shape[1] // 2] = torch.nan
        b[-1, b.shape[1] // 2] = -torch.inf
    return problem["a"].fill(a), problem["b"].fill(b)


def _values(spec: TensorSpec, generator: torch.Generator, variant: str) -> torch.Tensor:
    make = torch.rand if variant == "positive" else torch.randn
    return make(spec.shape, generator=generator, device=generator.device, dtype=spec.torch_dtype)


def problem_of(m: int, n: int, k: int, dtype: str = "bfloat16", weight: bool = True) -> Problem:
    """The problem of a contiguous `a` and, for `weight`, of `b = w.t()` with a contiguous `w` of
    (n, k)."""
    b = TensorSpec((k, n), (1, k) if weight else (n, 1), dtype)
    return Problem("matmul", (("a", TensorSpec.contiguous((m, k), dtype)), ("b", b)))


_LAYERS = {
    "llama3-8b-qkv": (6144, 4096),
    "llama3-8b-o": (4096, 4096),
    "llama3-8b-gate_up": (28672, 4096),
    "llama3-8b-down": (4096, 14336),
}

WORKLOADS = (
    *(
        Workload(f"{name}-m{m}", problem_of(m, n, k))
        for name, (n, k) in _LAYERS.items()
        for m in (1, 16, 64, 512, 4096)
    ),
    *(Workload(f"square-{n}", problem_of(n, n, n)) for n in (1024, 2048, 4096, 8192)),
    Workload("square-4096-row-major", problem_of(4096, 4096, 4096, weight=False)),
    Workload("square-4096-fp16", problem_of(4096, 4096, 4096, "float16")),
    Workload("square-1024-fp32", problem_of(1024, 1024, 1024, "float32")),
    Workload("odd-1023x1000x1031", problem_of(1023, 1000, 1031)),
    Workload("odd-1023x1000x1031-row-major", problem_of(1023, 1000, 1031, weight=False)),
    Workload("sdxl-qkv-64x64", problem_of(8192, 640, 640, "float16")),
    Workload("sdxl-ff-32x32", problem_of(2048, 10240, 1280, "float16")),
    Workload("sdxl-context-77", problem_of(154, 1280, 2048, "float16")),
)

OP = declare(
    Op(
        schema="matmul(Tensor a, Tensor b) -> Tensor",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=("normal", "positive", "range", "nonfinite"),
        outputs=outputs,
        axes=axes,
        cost=cost,
        bounds=bounds,
        workloads=WORKLOADS,
        matrix=True,
        gradients=(
            Gradient("matmul", ("a",), lambda grad_out, b: (dense(grad_out, 2), b.mT)),
            Gradient("matmul", ("b",), lambda a, grad_out: (a.mT, dense(grad_out, 2))),
        ),
        autocast="lower",
        sized=lambda s, dtype: problem_of(s["M"], s["N"], s["K"], dtype),
    )
)
