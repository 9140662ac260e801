"""The public `rope_tables`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gristmill.errors import InvalidInputError
from gristmill.ops._rope_frequencies import frequencies

POSITIONS = (
    *(torch.int32, torch.int64, torch.float16, torch.bfloat16),
    *(torch.float32, torch.float64),
)


def rope_tables(
    positions: torch.Tensor,
    head_dim: int,
    theta: float = 10000.0,
    scaling: Mapping[str, Any] | None = None,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary embeddings: pair `i` of a position `p` turns by
    `p * theta ** (-2 i / head_dim)`.

    Torch's operations, which Inductor fuses; no complex numbers. Angles are computed in double
    precision: as float32 products they are off by up to 0.006 at position 100,000.

    Args:
        positions: `(*shape,)`, integers or floating-point numbers: `torch.arange(length)`.
        head_dim: the number of columns to turn, even: a head's, or the part of it that is turned.
        theta: the base of the frequencies.
        scaling: None, or a mapping as a model's configuration has it, `{"rope_type": "linear",
            "factor"}`, `{"rope_type": "llama3", "factor", "low_freq_factor", "high_freq_factor",
            "original_max_position_embeddings"}`, or `{"rope_type": "yarn", "factor",
            "original_max_position_embeddings"}` with `attention_factor`, `beta_fast` (32),
            `beta_slow` (1), `mscale`, `mscale_all_dim`, `truncate` (True) where they differ. A
            `rope_theta` in it has to be `theta`.
        interleaved: pairs are neighbours, so each value stands twice in a row of its own; else the
            second half of a table repeats the first.

    Returns:
        `cos, sin`, contiguous `(*shape, head_dim)` float32 on the device of `positions`. Half of a
        table, `cos[..., : head_dim // 2]`, says the same where pairs are no neighbours.

    Raises:
        InvalidInputError: positions that are no numbers, an odd `head_dim`, a `theta` that is not
            above 0, a scaling of an unknown kind or with missing or unknown keys.

    Sources: Su et al., "RoFormer" (2021); Chen et al., "Positional Interpolation" (2023); Peng et
    al., "YaRN" (2023); "The Llama 3 Herd of Models" (2024).
    """
    if not isinstance(positions, torch.Tensor) or positions.dtype not in POSITIONS:
        given = positions.dtype if isinstance(positions, torch.Tensor) else type(positions).__name__
        raise InvalidInputError(
            f"`positions` is {given}; `rope_tables` needs a tensor of "
            f"{', '.join(str(d) for d in POSITIONS)}. Pass `torch.arange(length)`."
        )
    each, factor = frequencies(head_dim, theta, scaling)
    steps = torch.tensor(each, dtype=torch.float64, device=positions.device)
    angles = positions.to(torch.float64).unsqueeze(-1) * steps
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat((angles, angles), -1)
    return (angles.cos() * factor).float(), (angles.sin() * factor).float()
