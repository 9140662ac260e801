"""Modules over the operators, with `torch.nn`'s arguments and state dicts where torch has one."""

from __future__ import annotations

from gristmill.nn.rms_norm import RMSNorm
from gristmill.nn.rotary import RotaryEmbedding
from gristmill.nn.silu_and_mul import SiluAndMul

__all__ = ["RMSNorm", "RotaryEmbedding", "SiluAndMul"]
