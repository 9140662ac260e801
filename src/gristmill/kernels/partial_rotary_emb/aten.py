"""The op's reference as torch's eager operators run it, one after the other."""

from __future__ import annotations

from gristmill.core.registry import register
from gristmill.specs.partial_rotary_emb import OP, reference

partial_rotary_emb = register(OP, "aten", reference, kind="vendor", module=__name__)
