"""Modules over the operators, with `torch.nn`'s arguments and state dicts where torch has one."""

from __future__ import annotations

from gristmill.nn.rms_norm import RMSNorm

__all__ = ["RMSNorm"]
