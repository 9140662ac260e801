"""`out = gelu(x)`, a program a tile of rows and columns (`device/elementwise_tiles.py`). For
every size, and a unit stride in the last dimension."""

from __future__ import annotations

from gristmill.core.registry import register
from gristmill.kernels.device.elementwise_tiles import ELEMENTWISE_TILES, elementwise_launcher
from gristmill.specs.gelu import CHOICE, OP

_launch = elementwise_launcher(OP, CHOICE)

gelu = register(OP, "tiles", _launch, module=__name__, **ELEMENTWISE_TILES)
