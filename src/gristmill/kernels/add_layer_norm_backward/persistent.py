"""The gradients of `add_layer_norm` by persistent programs (`device/centred_gradients.py`).

`x` and both gradients are read once. Made for rows that fit into registers, up to 8,192 values.
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
from gristmill.specs.add_layer_norm_backward import OP

# Untuned, it goes before the eager composition, which passes over the rows some ten times.
add_layer_norm_backward = register(
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
