"""The op's reference as torch's eager operators run it, one after the other."""

from __future__ import annotations

from gristmill.core.registry import register
from gristmill.specs.apply_rotary_pos_emb_backward import OP, reference

apply_rotary_pos_emb_backward = register(OP, "aten", reference, kind="vendor", module=__name__)
