"""The op's reference as torch's eager operators run it, one after the other."""

from __future__ import annotations

from gristmill.core.registry import register
from gristmill.specs.gelu_and_mul_backward import OP

gelu_and_mul_backward = register(OP, "aten", OP.reference, kind="vendor", module=__name__)
