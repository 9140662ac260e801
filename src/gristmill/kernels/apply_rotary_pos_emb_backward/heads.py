"""The gradients of queries and keys, turned back,
both in one launch: a program a tile of tokens and heads.

Each value is read and written once, 16 bytes at a time where heads lie on 16 bytes, the tables once
for all heads of a tile (from L2 but for their first read). For every size.
"""

from __future__ import annotations

from typing import Any

import torch

from gristmill.core.config import Config
from gristmill.core.launch import Launch
from gristmill.core.registry import register
from gristmill.kernels.device.rotary import SPACE, prior, turn_both, why_not
from gristmill.specs.apply_rotary_pos_emb_backward import OP


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    return turn_both(OP.problem(args), args, outputs, config, inverse=True)


# Untuned, it goes before the eager composition, which passes over the tensors some ten times.
apply_rotary_pos_emb_backward = register(
    OP, "heads", _launch, space=SPACE, prior=prior, supports=why_not, preference=1
)
