"""The public `matmul`."""

from __future__ import annotations

import torch

from gristmill.ops._dispatch import public


@public
def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix product: `out[m, n] = sum_k a[m, k] * b[k, n]`.

    Uses the plan for this problem where there is one and the prior where not; never tunes
    (`gristmill.get_op` does).

    Args:
        a: `(M, K)`, float16, bfloat16 or float32, with a unit stride in either dimension.
        b: `(K, N)` of the same dtype, with a unit stride in either dimension (`w.t()` as it is).

    Returns:
        A contiguous `(M, N)` of the same dtype. Sums in float32 (IEEE, never TF32), rounded once;
        deterministic for a given plan.

    Raises:
        InvalidInputError: a wrong rank, sizes that do not match, mixed dtypes or devices, or no
            unit stride.

    Differentiable; works under `torch.compile`, autocast, `torch.func` and in modes, as
    `torch.ops.gristmill.matmul`.
    """
    ...
