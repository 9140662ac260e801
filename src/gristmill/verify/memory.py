"""Poisoned tensors and canaries: what a kernel did not write, and what it wrote outside its
output."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gristmill.core.problem import TensorSpec

GUARD_BYTES = (
    4096  # before and after an output: more than one tile's row, and keeps the output on 16 bytes
)
CANARY = 0xA5


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """Fill with NaN (integers: with their smallest value), so that what is left unwritten shows;
    returns it."""
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(torch.nan)
    if tensor.dtype is torch.bool:
        return tensor.fill_(True)
    return tensor.fill_(torch.iinfo(tensor.dtype).min)


@dataclass(frozen=True, slots=True)
class Guard:
    """The memory around one guarded output."""

    before: torch.Tensor
    after: torch.Tensor

    def intact(self) -> bool:
        """Whether nothing was written outside the output (waits for the device)."""
        return all(bool((side == CANARY).all()) for side in (self.before, self.after))


def guarded_empty(spec: TensorSpec, device: torch.device | str) -> tuple[torch.Tensor, Guard]:
    """A poisoned tensor of this spec with canaries on both sides of its memory, and their guard."""
    offset = 0 if spec.aligned else spec.itemsize
    start = GUARD_BYTES + offset
    end = start + spec.extent * spec.itemsize
    memory = torch.full((end + GUARD_BYTES,), CANARY, dtype=torch.uint8, device=device)
    pad = -memory.numel() % spec.itemsize
    if pad:
        memory = torch.full((memory.numel() + pad,), CANARY, dtype=torch.uint8, device=device)
    typed = memory.view(spec.torch_dtype)
    tensor = typed.as_strided(spec.shape, spec.strides, start // spec.itemsize)
    return poison(tensor), Guard(memory[:start], memory[end:])
