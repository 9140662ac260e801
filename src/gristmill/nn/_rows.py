"""What the modules that normalise rows refuse."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gristmill.errors import InvalidInputError


def check_normalized(module: str, normalized_shape: Sequence[int]) -> None:
    """Refuse more than one dimension to normalise over."""
    if len(normalized_shape) != 1:
        raise InvalidInputError(
            f"`normalized_shape` is {tuple(normalized_shape)}; `{module}` normalises over the last "
            "dimension alone. Pass its size, and flatten the others into it before the call."
        )


def check_width(x: torch.Tensor, normalized_shape: Sequence[int]) -> None:
    """Refuse an input whose last dimension is another."""
    if x.dim() == 0 or x.shape[-1] != normalized_shape[0]:
        raise InvalidInputError(
            f"`x` has shape {tuple(x.shape)}; this module normalises rows of "
            f"{normalized_shape[0]}. Pass rows of that length."
        )
