"""apply_rotary_pos_emb_backward: the gradients of `apply_rotary_pos_emb`, which are those of its
results turned back (Su et al., "RoFormer", 2021): a rotation's transpose is its inverse."""

from __future__ import annotations

import torch

from gristmill.core.gradient import Gradient, dense
from gristmill.core.op import Op, Workload
from gristmill.core.registry import declare
from gristmill.specs.apply_rotary_pos_emb import (
    OWN_DTYPES,
    VARIANTS,
    axes,
    both,
    bounds,
    check_operands,
    cost,
    forms,
    heads_first,
    inputs,
    outputs,
    problem_of,
    sized,
)

NAME = "apply_rotary_pos_emb_backward"
NAMES = ("grad_q_out", "grad_k_out")


def check(
    grad_q_out: torch.Tensor,
    grad_k_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: as `apply_rotary_pos_emb` of the gradients in place of `q` and `k`.
    """
    del interleaved
    operands = (("grad_q_out", grad_q_out), ("grad_k_out", grad_k_out))
    check_operands(NAME, operands, cos, sin, position_ids, rotary_dim)


def reference(
    grad_q_out: torch.Tensor,
    grad_k_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 inside (float64 for float64), one rounding, contiguous results."""
    given = (grad_q_out, grad_k_out, cos, sin, position_ids, interleaved, rotary_dim)
    return both(*given, sign=-1)


def magnitude(
    grad_q_out: torch.Tensor,
    grad_k_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of the terms' absolute values."""
    given = (grad_q_out, grad_k_out, cos, sin, position_ids, interleaved, rotary_dim)
    grad_q, grad_k = both(*given, size=True)
    return grad_q.abs(), grad_k.abs()


WORKLOADS = (
    Workload("llama3-8b-4x4096", problem_of(4, 4096, (32, 8), 128, names=NAMES)),
    Workload(
        "llama3-8b-4x4096-heads-first",
        heads_first(problem_of(4, 4096, (32, 8), 128, names=NAMES)),
    ),
    Workload(
        "llama3-8b-4x4096-interleaved",
        problem_of(4, 4096, (32, 8), 128, names=NAMES, interleaved=True),
    ),
    Workload("llama3-8b-4x4096-fp32", problem_of(4, 4096, (32, 8), 128, "float32", names=NAMES)),
    Workload("phi2-2x2048", problem_of(2, 2048, (32, 32), 80, rotary_dim=32, names=NAMES)),
    Workload("odd-3x341", problem_of(3, 341, (5, 1), 66, names=NAMES)),
)

OP = declare(
    Op(
        schema=f"{NAME}(Tensor grad_q_out, Tensor grad_k_out, Tensor cos, Tensor sin, "
        "Tensor? position_ids=None, bool interleaved=False, int? rotary_dim=None) "
        "-> (Tensor grad_q, Tensor grad_k)",
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
        own_dtypes=OWN_DTYPES,
        sized=lambda s, dtype: sized(dict(s), dtype, NAMES),
        forms=forms,
        gradients=(
            # What turned back is turned forth: derivatives of any order by these two ops.
            Gradient(
                "apply_rotary_pos_emb",
                NAMES,
                lambda grad_grad_q, grad_grad_k, cos, sin, position_ids, interleaved, rotary_dim: (
                    dense(grad_grad_q),
                    dense(grad_grad_k),
                    cos,
                    sin,
                    position_ids,
                    interleaved,
                    rotary_dim,
                ),
            ),
        ),
    )
)
