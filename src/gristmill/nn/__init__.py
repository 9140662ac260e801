"""Modules over the operators, with `torch.nn`'s arguments and state dicts where torch has one."""

from __future__ import annotations

from gristmill.nn.layer_norm import LayerNorm
from gristmill.nn.rms_norm import RMSNorm
from gristmill.nn.silu_and_mul import SiluAndMul

__all__ = ["LayerNorm", "RMSNorm", "SiluAndMul"]
