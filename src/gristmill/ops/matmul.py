"""The public `matmul`."""

from __future__ import annotations

import torch

from gristmill.ops._dispatch import public


@public
def matmul(a: torch.Tensor, b: torch.Tensor, tf32: bool = False) -> torch.Tensor:
    """Matrix product: `out[..., m, n] = sum_k a[..., m, k] * b[..., k, n]`.

    Uses the plan for this problem where there is one and the prior where not; never tunes
    (`gristmill.get_op` does).

    Args:
        a: `(*batch, M, K)`, float16, bfloat16 or float32, with a unit stride in either of its last
            two dimensions; any other strides, 0 included.
        b: `(K, N)`, for the whole batch, or `(*batch, K, N)`, of the same dtype and with a unit
            stride as `a` (`w.t()` as it is). The batch is not broadcast: `b.expand(...)` does.
        tf32: whether float32 factors may be rounded to TF32 (10 bits of mantissa) for the sake of
            speed: an error of up to 2^-9 of each product. No effect on 16-bit types. Our kernels
            use it; cuBLAS does only where torch's own setting allows it
            (`torch.backends.cuda.matmul`), which is left as it is.

    Returns:
        A contiguous `(*batch, M, N)` of the same dtype. Products of the exact factors (float32:
        IEEE, unless `tf32`), summed in float32, rounded once; deterministic for a given plan.

    Raises:
        InvalidInputError: a wrong rank, sizes that do not match, mixed dtypes or devices, or no
            unit stride.

    Differentiable; works under `torch.compile`, autocast, `torch.func` and in modes, as
    `torch.ops.gristmill.matmul`. Gradients are products under the same `tf32`.
    """
    ...
