"""The op's reference as torch's eager operators run it, one after the other."""

from __future__ import annotations

from gristmill.core.registry import register
from gristmill.specs.silu_and_mul import OP

silu_and_mul = register(OP, "aten", OP.reference, kind="vendor", module=__name__)
