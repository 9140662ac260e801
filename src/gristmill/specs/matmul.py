"""matmul: `out[..., m, n] = sum_k a[..., m, k] * b[..., k, n]`, accumulated in float32."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch

from gristmill.core.gradient import Gradient, dense
from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Axis, Problem, TensorSpec, merge_dims
from gristmill.core.registry import declare
from gristmill.errors import InvalidInputError
from gristmill.record import record

# Adds that a kernel chains before it rounds: matrix units take 16 products a step, a vectorised
# float32 loop has 16 lanes.
CHAIN = 16
TF32_EPS = 2.0**-10  # the last of TF32's ten bits: what a factor loses at most, where it is cut off


def check(a: torch.Tensor, b: torch.Tensor, tf32: bool) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: fewer than two dimensions, batch or inner sizes that differ, mixed
            dtypes, or an operand without a unit stride.
    """
    del tf32
    if a.dim() < 2:
        raise InvalidInputError(
            f"`a` has shape {tuple(a.shape)}; `matmul` takes a 2-D operand or a batch of them. "
            "Call `a.reshape(rows, columns)`."
        )
    if b.dim() != 2 and (b.dim() != a.dim() or a.shape[:-2] != b.shape[:-2]):
        raise InvalidInputError(
            f"`b` has shape {tuple(b.shape)} and `a` {tuple(a.shape)}; `matmul` takes a 2-D `b` "
            "for the whole batch, or one with the batch sizes of `a`. Call `b.expand(...)` or "
            "`b.reshape(...)`."
        )
    if a.dtype != b.dtype:
        raise InvalidInputError(
            f"`b` has dtype {b.dtype} and `a` {a.dtype}; `matmul` needs one dtype. Call "
            f"`b.to({a.dtype})`."
        )
    if a.shape[-1] != b.shape[-2]:
        swapped = "`b.t()`" if b.dim() == 2 else "`b.mT`"
        hint = f"Did you mean {swapped}?" if a.shape[-1] == b.shape[-1] else "Pass such operands."
        raise InvalidInputError(
            f"`b` has shape {tuple(b.shape)} and `a` {tuple(a.shape)}; `matmul` needs as many rows "
            f"of `b` as columns of `a`. {hint}"
        )
    for name, tensor in (("a", a), ("b", b)):
        # A size that depends on data is a symbol, which cannot be compared; a unit stride is a
        # number. Of no elements any strides will do: the gradient of an empty sum has only zeros.
        if any(isinstance(stride, int) and stride == 1 for stride in tensor.stride()[-2:]):
            continue
        if all(size > 1 for size in tensor.shape[-2:]) and 0 not in tensor.shape:
            raise InvalidInputError(
                f"`{name}` has strides {tuple(tensor.stride())}; `matmul` needs stride 1 along one "
                f"of its last two dimensions. Call `{name}.contiguous()`."
            )


def reference(a: torch.Tensor, b: torch.Tensor, tf32: bool = False) -> torch.Tensor:
    """What torch computes: float32 accumulation (float64 for float64), one rounding."""
    del tf32  # a permission
    return a @ b


def magnitude(a: torch.Tensor, b: torch.Tensor, tf32: bool = False) -> torch.Tensor:
    """The sum with no cancellation."""
    del tf32
    return a.abs() @ b.abs()


@record
class Product:
    """`batch` products of one size, one stride apart: what a problem comes to when its dimensions
    are merged.

    Attributes:
        a, b: the first operands, of `(M, K)` and `(K, N)`.
        batch: how many products.
        stride_ab, stride_bb: elements from one operand to the next (0: the same one).
    """

    a: TensorSpec
    b: TensorSpec
    batch: int = 1
    stride_ab: int = 0
    stride_bb: int = 0


def product(problem: Problem) -> Product | None:
    """The problem with its dimensions merged; `None` where its batch has more than one stride."""
    return product_of(problem["a"], problem["b"])


def product_of(a: TensorSpec, b: TensorSpec) -> Product | None:
    """As `product`, of the operands. One `b` for every row of `a` makes one product of more rows,
    where these are one stride apart."""
    try:
        return _remembered(a, b)
    except TypeError:  # sizes that are symbols have no hash
        return _product(a, b)


def _product(a: TensorSpec, b: TensorSpec) -> Product | None:
    batch, (m, k) = a.shape[:-2], a.shape[-2:]
    one_a, one_b = (replace(s, shape=s.shape[-2:], strides=s.strides[-2:]) for s in (a, b))
    b_batch = merge_dims(b.shape[:-2], b.strides[:-2])
    if math.prod(batch) == 1:
        return Product(one_a, one_b)
    if all(stride == 0 for _, stride in b_batch):
        rows = merge_dims(a.shape[:-1], a.strides[:-1])
        if len(rows) == 1:
            ((count, stride),) = rows
            return Product(replace(a, shape=(count, k), strides=(stride, a.strides[-1])), one_b)
    a_batch = merge_dims(batch, a.strides[:-2])
    if 0 in (*batch, m):
        return Product(one_a, one_b, math.prod(batch))
    if len(a_batch) != 1 or len(b_batch) > 1:
        return None
    return Product(one_a, one_b, math.prod(batch), a_batch[0][1], b_batch[0][1] if b_batch else 0)


_remembered = functools.lru_cache(maxsize=4096)(_product)


def why_not_one_product(problem: Problem) -> str | None:
    """Why the problem is no single product, or `None`: the reason of kernels that take one."""
    if sizes(problem)[3] == 1:
        return None
    return "a batch of products that are not one of more rows; this kernel takes one"


def why_not_merged(problem: Problem) -> str | None:
    """Why the batch cannot be walked with one stride an operand, or `None`."""
    return None if product(problem) else "batch dimensions that do not merge into one of one stride"


def sizes(problem: Problem) -> tuple[int, int, int, int]:
    """M, N, K and the batch size, with what merges merged."""
    a, b = problem["a"], problem["b"]
    merged = product_of(a, b)
    if merged is None:
        return a.shape[-2], b.shape[-1], a.shape[-1], math.prod(a.shape[:-2])
    (m, k), (_, n) = merged.a.shape, merged.b.shape
    return m, n, k, merged.batch


def rounds_factors(problem: Problem) -> bool:
    """Whether the factors may be rounded to TF32."""
    return problem["tf32"] and problem["a"].dtype == "float32"


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    a, b = problem["a"], problem["b"]
    return (TensorSpec.contiguous((*a.shape[:-1], b.shape[-1]), a.dtype),)


def axes(problem: Problem) -> tuple[Axis, ...]:
    m, n, k, batch = sizes(problem)
    return (Axis("M", m, exact=False), Axis("N", n), Axis("K", k), Axis("B", batch, exact=False))


def cost(problem: Problem) -> Cost:
    m, n, k, batch = sizes(problem)
    read = (_distinct(problem[name]) for name in ("a", "b"))
    written = batch * m * n
    return Cost(
        flops=2 * batch * m * n * k,
        size_bytes=(sum(read) + written) * problem["a"].itemsize,
        arithmetic="tf32" if problem["tf32"] and problem["a"].dtype == "float32" else "",
    )


def _distinct(spec: TensorSpec) -> int:
    """Elements in memory: what is expanded is there once."""
    pairs = zip(spec.shape, spec.strides, strict=True)
    return math.prod(size for size, stride in pairs if stride != 0 or size == 0)


def bounds(problem: Problem) -> Bounds:
    k = problem["a"].shape[-1]
    info = torch.finfo(problem["a"].torch_dtype)
    gamma = (4 + k / CHAIN) * 2.0**-23
    reason = (
        f"one rounding to {problem['a'].dtype}; float32 accumulation that truncates at each of "
        f"{k}/{CHAIN} steps; float32 products below 2^-126 may be flushed"
    )
    if rounds_factors(problem):
        # (1 + e)^2 - 1; a matrix unit that reads float32 from shared memory cuts the low bits off.
        gamma += 2 * TF32_EPS + TF32_EPS**2
        reason += "; each factor loses what is below TF32's ten bits, at most 2^-10 of it"
    return Bounds(
        rtol=info.eps / 2,
        gamma=gamma,
        atol=info.smallest_normal * info.eps + (1 + k) * torch.finfo(torch.float32).smallest_normal,
        reason=reason,
    )


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Operands of the problem's layout. Variants: `normal`; `positive` (no cancellation: the sums
    are long and biased); `range` (columns of `a` and rows of `b` scaled from 2^-4 to 2^4);
    `nonfinite` (a few inf and NaN)."""
    a, b = (_values(problem[name], generator, variant) for name in ("a", "b"))
    if variant == "range" and a.shape[-1]:
        exponents = torch.randint(
            -4, 5, (a.shape[-1],), generator=generator, device=generator.device
        )
        scale = torch.exp2(exponents.to(torch.float32)).to(a.dtype)
        a, b = a * scale, b / scale.flip(0)[:, None]
    if variant == "nonfinite" and a.numel() and b.numel():
        a[..., a.shape[-2] // 2, 0] = torch.inf
        a[..., -1, a.shape[-1] // 2] = torch.nan
        b[..., -1, b.shape[-1] // 2] = -torch.inf
    return problem["a"].fill(a), problem["b"].fill(b), problem["tf32"]


def _values(spec: TensorSpec, generator: torch.Generator, variant: str) -> torch.Tensor:
    make = torch.rand if variant == "positive" else torch.randn
    return make(spec.shape, generator=generator, device=generator.device, dtype=spec.torch_dtype)


def _transposed(rows: int, columns: int, dtype: str) -> TensorSpec:
    """`x.t()` of a contiguous `x`."""
    return TensorSpec((rows, columns), (1, rows), dtype)


def problem_of(
    m: int,
    n: int,
    k: int,
    dtype: str = "bfloat16",
    *,
    weight: bool = True,
    along_m: bool = False,
    batch: int = 1,
    tf32: bool = False,
) -> Problem:
    """The problem of a contiguous `a` (for `along_m`, of `x.t()` with a contiguous `x` of (k, m))
    and, for `weight`, of `b = w.t()` with a contiguous `w` of (n, k); of that many in a row."""
    a = _transposed(m, k, dtype) if along_m else TensorSpec.contiguous((m, k), dtype)
    b = _transposed(k, n, dtype) if weight else TensorSpec.contiguous((k, n), dtype)
    if batch != 1:
        a, b = (replace(s, shape=(batch, *s.shape), strides=(s.numel, *s.strides)) for s in (a, b))
    return Problem("matmul", (("a", a), ("b", b), ("tf32", tf32)))


def forms(problem: Problem) -> dict[str, Problem]:
    """TF32 allowed; and of a batch, one `b` for all of it."""
    a, b = problem["a"], problem["b"]
    made = {}
    if a.dtype == "float32" and not problem["tf32"]:
        made["tf32"] = Problem("matmul", (("a", a), ("b", b), ("tf32", True)))
    if len(b.shape) > 2:
        one = replace(b, shape=b.shape[-2:], strides=b.strides[-2:])
        made["shared"] = Problem("matmul", (("a", a), ("b", one), ("tf32", problem["tf32"])))
    return made


def _grad_b(
    a: torch.Tensor, grad_out: torch.Tensor, tf32: bool, strides_b: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Of a `b` that the whole batch shares, one product: the rows of the batch are summed over."""
    if len(strides_b) == 2 < a.dim():
        # By `flatten`: `reshape` cannot tell how many rows of no values there are.
        a, grad_out = (dense(t.flatten(0, -2), 2) for t in (a, grad_out))
    grad = dense(grad_out, 2)
    return (grad.mT, a, tf32) if _is_transposed(strides_b) else (a.mT, grad, tf32)


def _laid_as_b(made: torch.Tensor, strides_b: tuple[int, ...]) -> torch.Tensor:
    """Of `b = w.t()` the gradient lies as `w.t()` does: as another layout it would be copied into
    `w.grad`, 235 MB at Llama's gate_up."""
    return made.mT if _is_transposed(strides_b) else made


def _is_transposed(strides: tuple[int, ...]) -> bool:
    # Sizes that depend on data are symbols, which cannot be compared; a unit stride is a number.
    before, last = (s if isinstance(s, int) else 2 for s in strides[-2:])
    return before == 1 != last


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
    # The gradients of these layers, of an input of 4,096 rows and of the weight.
    *(
        Workload(f"{name}-dx-m4096", problem_of(4096, k, n, weight=False))
        for name, (n, k) in _LAYERS.items()
    ),
    *(
        Workload(f"{name}-dw-m4096", problem_of(k, n, 4096, weight=False, along_m=True))
        for name, (n, k) in _LAYERS.items()
    ),
    # ... and of the `w` of `a @ w.t()`, as it lies.
    *(
        Workload(f"{name}-dwt-m4096", problem_of(n, k, 4096, weight=False, along_m=True))
        for name, (n, k) in _LAYERS.items()
    ),
    *(Workload(f"square-{n}", problem_of(n, n, n)) for n in (1024, 2048, 4096, 8192)),
    Workload("square-4096-row-major", problem_of(4096, 4096, 4096, weight=False)),
    Workload("square-4096-fp16", problem_of(4096, 4096, 4096, "float16")),
    Workload("square-1024-fp32", problem_of(1024, 1024, 1024, "float32")),
    Workload("square-4096-tf32", problem_of(4096, 4096, 4096, "float32", tf32=True)),
    Workload("odd-1023x1000x1031", problem_of(1023, 1000, 1031)),
    Workload("odd-1023x1000x1031-row-major", problem_of(1023, 1000, 1031, weight=False)),
    Workload("sdxl-qkv-64x64", problem_of(8192, 640, 640, "float16")),
    Workload("sdxl-ff-32x32", problem_of(2048, 10240, 1280, "float16")),
    Workload("sdxl-context-77", problem_of(154, 1280, 2048, "float16")),
    # 32 heads of 128: 128 queries against 4,096 keys, and the values under them; a decoded token.
    Workload("heads-32x128x4096x128", problem_of(128, 4096, 128, batch=32)),
    Workload("heads-32x128x128x4096", problem_of(128, 128, 4096, weight=False, batch=32)),
    Workload("heads-32x1x4096x128", problem_of(1, 4096, 128, batch=32)),
)

OP = declare(
    Op(
        schema="matmul(Tensor a, Tensor b, bool tf32=False) -> Tensor",
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
            Gradient("matmul", ("a",), lambda b, grad_out, tf32: (dense(grad_out, 2), b.mT, tf32)),
            Gradient("matmul", ("b",), _grad_b, _laid_as_b),
        ),
        autocast="lower",
        forms=forms,
        sized=lambda s, dtype: problem_of(s["M"], s["N"], s["K"], dtype, batch=s.get("B", 1)),
    )
)
