"""The gradients of `layer_norm` by persistent programs (`device/centred_gradients.py`).

Made for rows that fit into registers, up to 8,192 values.
"""

from __future__ import annotations

from gristmill.core.registry import register
from gristmill.kernels.device.centred_gradients import (
    SPACE,
    gradients,
    prior,
    supports,
    workspace,
)
from gristmill.specs.layer_norm_backward import OP

# Untuned, it goes before ATen, which reads `x` once more for the moments.
layer_norm_backward = register(
    OP,
    "persistent",
    gradients,
    module=__name__,
    space=SPACE,
    prior=prior,
    supports=supports,
    workspace=workspace,
    preference=1,
)
