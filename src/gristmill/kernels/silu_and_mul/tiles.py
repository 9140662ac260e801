"""`out = silu(gate) * up`, a program a tile of rows and columns (`device/gated_tiles.py`). For
every size."""

from __future__ import annotations

from gristmill.core.registry import register
from gristmill.kernels.device.gated_tiles import GATED_TILES, gated_launcher
from gristmill.specs.silu_and_mul import CHOICE, OP

_launch = gated_launcher(OP, CHOICE)

silu_and_mul = register(OP, "tiles", _launch, module=__name__, **GATED_TILES)
