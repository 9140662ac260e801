"""`RotaryEmbedding` over `gristmill.apply_rotary_pos_emb` and `gristmill.rope_tables`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from typing_extensions import Self

from gristmill.errors import InvalidInputError
from gristmill.ops.apply_rotary_pos_emb import apply_rotary_pos_emb
from gristmill.ops.rope_tables import rope_tables


class RotaryEmbedding(torch.nn.Module):
    """Rotary position embedding of queries and keys, with tables for the first positions.

    The tables are float32 buffers that follow the module to its device and stay in float32 whatever
    the module is cast to; a state dict does not have them.

    Args:
        head_dim: the columns to turn: of a wider head the first ones, the others pass through.
        max_positions: how many positions the tables have.
        theta, scaling: as `gristmill.rope_tables` takes them.
        interleaved: pairs are neighbours in place of columns half a width apart.
        device: of the tables.

    Raises:
        InvalidInputError: what `gristmill.rope_tables` refuses, or fewer positions than 0.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(
        self,
        head_dim: int,
        max_positions: int,
        theta: float = 10000.0,
        scaling: Mapping[str, Any] | None = None,
        interleaved: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if max_positions < 0:
            raise InvalidInputError(
                f"`max_positions` is {max_positions}; `RotaryEmbedding` needs 0 or more. Pass the "
                "longest sequence that the model takes."
            )
        self.head_dim, self.max_positions, self.theta = head_dim, max_positions, theta
        self.scaling = None if scaling is None else dict(scaling)
        self.interleaved = interleaved
        self._make_tables(torch.get_default_device() if device is None else torch.device(device))

    def _make_tables(self, device: torch.device) -> None:
        positions = torch.arange(self.max_positions, device=device)
        tables = rope_tables(positions, self.head_dim, self.theta, self.scaling, self.interleaved)
        for name, table in zip(("cos", "sin"), tables, strict=True):
            self.register_buffer(name, table, persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        was_meta = self.cos.is_meta
        super()._apply(fn, recurse)
        # Cast, they would have lost what they had; of a meta tensor they have nothing.
        if self.cos.dtype != torch.float32 or (was_meta and not self.cos.is_meta):
            self._make_tables(self.cos.device)
        return self

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`q` of `(B, S, H, D)` and `k` of `(B, S, G, D)` turned, at the first S positions or at
        `position_ids`, `(S,)` or `(B, S)`."""
        cos, sin = self.cos, self.sin
        if position_ids is None and q.dim() == 4:  # the op refuses any other
            length = q.shape[1]
            if length > self.max_positions:
                raise InvalidInputError(
                    f"`q` has {length} positions; this module has tables of {self.max_positions}. "
                    "Make it with more `max_positions`."
                )
            cos, sin = cos[:length], sin[:length]
        return apply_rotary_pos_emb(q, k, cos, sin, position_ids, self.interleaved, self.head_dim)

    def extra_repr(self) -> str:
        """What it was made with."""
        return (
            f"{self.head_dim}, max_positions={self.max_positions}, theta={self.theta}, "
            f"scaling={self.scaling}, interleaved={self.interleaved}"
        )
