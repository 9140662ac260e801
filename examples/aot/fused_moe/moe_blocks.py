"""Routed tokens in blocks of one expert each: what the fused kernel walks over."""

from __future__ import annotations

import torch


def align_blocks(
    topk_ids: torch.Tensor, block_size: int, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort routed tokens by expert, each expert's padded to whole blocks.

    Nothing waits for the device: sizes are upper bounds that follow from the shapes.

    Args:
        topk_ids: `(M, top_k)`, the experts of each token, 0 to num_experts - 1.
        block_size: tokens of a block, the kernel's BLOCK_SIZE_M.
        num_experts: E.

    Returns:
        sorted_token_ids: `(EM,)` int32, routed tokens `m * top_k + j` in stable order; `M * top_k`
            where a block is padded.
        expert_ids: `(EM / block_size,)` int32, the expert of each block; 0 behind the last one.
        num_tokens_post_padded: `(1,)` int32, how much of `sorted_token_ids` is used.
    """
    experts = topk_ids.reshape(-1).to(torch.int64)
    device, routed = experts.device, experts.numel()
    # Each expert that is met wastes at most a block but one token.
    blocks = (routed + min(num_experts, routed) * (block_size - 1)) // block_size
    counts = torch.zeros(num_experts, dtype=torch.int64, device=device)
    counts.scatter_add_(0, experts, torch.ones_like(experts))
    padded = (counts + block_size - 1) // block_size * block_size
    ends, padded_ends = counts.cumsum(0), padded.cumsum(0)
    order = experts.argsort(stable=True)
    of = experts[order]
    rank = torch.arange(routed, device=device) - (ends - counts)[of]
    token_ids = torch.full((blocks * block_size,), routed, dtype=torch.int32, device=device)
    token_ids[(padded_ends - padded)[of] + rank] = order.to(torch.int32)
    starts = torch.arange(blocks, device=device) * block_size
    expert_ids = torch.searchsorted(padded_ends, starts, right=True)
    expert_ids = torch.where(starts < padded_ends[-1], expert_ids, 0).to(torch.int32)
    return token_ids, expert_ids, padded_ends[-1:].to(torch.int32)
