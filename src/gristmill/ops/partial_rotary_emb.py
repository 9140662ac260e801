"""The public `partial_rotary_emb`."""

from __future__ import annotations

import torch

from gristmill.ops._dispatch import public


@public
def partial_rotary_emb(
    q: torch.Tensor,
    k_pe: torch.Tensor,
    kv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of multi-head latent attention: the last columns of a query and the
    one `k_pe` of all heads are turned, keys and values packed for attention, in one launch.

    Uses the plan for this problem where there is one and the prior where not; never tunes
    (`gristmill.get_op` does). Inputs are untouched.

    Args:
        q: `(B, S, H, Dn + Dr)`, the columns without a position and then those with one. float16,
            bfloat16 or float32; any strides with a unit stride in the last dimension, as the
            others.
        k_pe: `(B, S, 1, Dr)` of the same dtype.
        kv: `(B, S, H, Dn + Dv)` of the same dtype: the columns of keys without a position, and
            values.
        cos, sin: tables `(B, S, Dr)`, `(S, Dr)`, or of half the width, in any of the three dtypes.
            A whole table has each angle twice, in both halves, and only the first half is read.
        interleaved: pairs are neighbours in `q` and `k_pe`, as in DeepSeek's checkpoints; else half
            of Dr apart. In the results all first values of pairs stand before all second ones.

    Returns:
        `q` turned, `(B, S, H, Dn + Dr)`, and `(B, S, 2, H, Dn + Dr)`: keys, and values with zeros
            behind
        them. Contiguous, of q's dtype; computed in float32 and rounded once; deterministic.

    Raises:
        InvalidInputError: a wrong rank, dtype, device or stride, sizes that do not fit each other,
            an odd Dr, values wider than a query, tables of another length or width or unlike each
            other.

    Differentiable in `q`, `k_pe` and `kv`; where a table needs a gradient, torch differentiates the
    reference. Works under `torch.compile`, autocast (tables stay as they are), `torch.func` and in
    modes, as `torch.ops.gristmill.partial_rotary_emb`. Sources: DeepSeek-AI, "DeepSeek-V2" (2024);
    Su et al., "RoFormer" (2021).
    """
    ...


class PartialRotaryEmb:
    """`partial_rotary_emb` under the name by which code that had it as an autograd function calls
    it."""

    @staticmethod
    def apply(
        q: torch.Tensor,
        k_pe: torch.Tensor,
        kv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`partial_rotary_emb` of pairs that are neighbours; differentiable as that is."""
        return partial_rotary_emb(q, k_pe, kv, cos, sin)
