"""What the outputs should be: an op's reference and magnitude in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gristmill.core.op import Op, as_tuple

Tensors = tuple[torch.Tensor, ...]


def truth(op: Op, values: Sequence[Any]) -> tuple[Tensors, Tensors]:
    """The float64 references and magnitudes of an op's outputs for these arguments, on their
    device.

    `values` are the arguments in the schema's order, already rounded to their dtypes; they are not
    changed.
    """
    wide = [
        v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values
    ]
    with torch.no_grad():
        return as_tuple(op.reference(*wide)), as_tuple(op.magnitude(*wide))
