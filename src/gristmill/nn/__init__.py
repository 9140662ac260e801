"""Modules over the operators, with `torch.nn`'s arguments and state dicts where torch has one."""

from __future__ import annotations

from gristmill.nn.add_layer_norm import AddLayerNorm
from gristmill.nn.gelu import GELU
from gristmill.nn.gelu_and_mul import GeluAndMul
from gristmill.nn.layer_norm import LayerNorm
from gristmill.nn.relu2_and_mul import Relu2AndMul
from gristmill.nn.rms_norm import RMSNorm
from gristmill.nn.rotary import RotaryEmbedding
from gristmill.nn.silu_and_mul import SiluAndMul

__all__ = [
    "GELU",
    "AddLayerNorm",
    "GeluAndMul",
    "LayerNorm",
    "RMSNorm",
    "Relu2AndMul",
    "RotaryEmbedding",
    "SiluAndMul",
]
