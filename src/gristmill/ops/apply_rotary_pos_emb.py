"""The public `apply_rotary_pos_emb`."""

from __future__ import annotations

import torch

from gristmill.ops._dispatch import public


@public
def apply_rotary_pos_emb(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of queries and keys, in one launch: each pair `(a, b)` of a head's
    columns becomes `(a cos - b sin, b cos + a sin)` of its position's angle.

    Uses the plan for this problem where there is one and the prior where not; never tunes
    (`gristmill.get_op` does). Inputs are untouched.

    Args:
        q: `(B, S, H, D)`, float16, bfloat16 or float32; any strides with a unit stride in the last
            dimension. Of `(B, H, S, D)`, pass `q.transpose(1, 2)`: nothing is copied.
        k: `(B, S, G, D)` of the same dtype, with any number of heads.
        cos, sin: tables `(S, W)`, or `(B, S, W)` for sequences that differ, in any of the three
            dtypes whatever that of `q` (`gristmill.rope_tables` makes them). W is the number of
            columns to turn, or half of it. A table of all columns has each angle twice, where its
            pair stands (the second half repeats the first; interleaved, the odd columns the even
            ones), and only the first of the two is read.
        position_ids: `(S,)` or `(B, S)`, int32 or int64: the row of the tables, then `(rows, W)`,
            for each position. A position that the tables do not have turns to NaN; memory outside
            them is never read.
        interleaved: pairs are neighbours (GPT-J, GLM) in place of columns half a width apart
            (GPT-NeoX, Llama).
        rotary_dim: how many of a head's first columns to turn; the others pass through. None: all
            of them by tables of width D or D / 2, and W of them by any other.

    Returns:
        `q` and `k` turned, contiguous, of their dtype. Computed in float32 and rounded once;
        deterministic.

    Raises:
        InvalidInputError: a wrong rank, dtype, device or stride, sizes of `k` that differ in more
            than heads, an odd number of columns to turn, tables of another length or width or
            unlike each other, positions of another shape.

    Differentiable in `q` and `k`, as often as you like, by the rotation back; where a table needs a
    gradient, torch differentiates the reference. Works under `torch.compile`, autocast (tables stay
    as they are), `torch.func` and in modes, as `torch.ops.gristmill.apply_rotary_pos_emb`. Source:
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).
    """
    ...
