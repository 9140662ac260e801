"""Modules over the operators, with `torch.nn`'s arguments and state dicts where torch has one."""

from __future__ import annotations

from gristmill.nn.add_layer_norm import AddLayerNorm
from gristmill.nn.layer_norm import LayerNorm
from gristmill.nn.rms_norm import RMSNorm
from gristmill.nn.silu_and_mul import SiluAndMul

__all__ = ["AddLayerNorm", "LayerNorm", "RMSNorm", "SiluAndMul"]
