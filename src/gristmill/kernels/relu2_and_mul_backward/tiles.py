"""The gradients of `relu2_and_mul`, a program a tile of rows and columns (see
`device/gated_tiles.py`). For every size."""

from __future__ import annotations

from gristmill.core.registry import register
from gristmill.kernels.device.gated_tiles import GATED_TILES, gated_launcher
from gristmill.specs.relu2_and_mul import CHOICE
from gristmill.specs.relu2_and_mul_backward import OP

_launch = gated_launcher(OP, CHOICE)

relu2_and_mul_backward = register(OP, "tiles", _launch, module=__name__, **GATED_TILES)
