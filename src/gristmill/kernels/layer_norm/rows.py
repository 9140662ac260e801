"""`out = (x - mean) / sqrt(var + eps) * weight + bias`, a program a tile of one row or several.

Every value is read once and written once (`device/centred_rows.py`); of rows above 16,384 values it
is read twice. For every size: several rows a tile where they are short.
"""

from __future__ import annotations

from gristmill.core.registry import register
from gristmill.kernels.device.centred_rows import SPACE, normalise, prior, supports
from gristmill.specs.layer_norm import OP

# Untuned, it goes before the vendor call.
layer_norm = register(
    OP,
    "rows",
    normalise,
    module=__name__,
    space=SPACE,
    prior=prior,
    supports=supports,
    preference=1,
)
