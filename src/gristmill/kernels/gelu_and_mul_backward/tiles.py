"""The gradients of `gelu_and_mul`, a program a tile of rows and columns (see
`device/gated_tiles.py`). For every size."""

from __future__ import annotations

from gristmill.core.registry import register
from gristmill.kernels.device.gated_tiles import GATED_TILES, gated_launcher
from gristmill.specs.gelu_and_mul import CHOICE
from gristmill.specs.gelu_and_mul_backward import OP

_launch = gated_launcher(OP, CHOICE)

gelu_and_mul_backward = register(OP, "tiles", _launch, module=__name__, **GATED_TILES)
