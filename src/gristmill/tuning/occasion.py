"""When not to tune."""

from __future__ import annotations

import torch


def refusal() -> str:
    """Why this is no time to tune, or an empty string."""
    if torch.compiler.is_compiling():
        return "under torch.compile"
    if (
        torch.cuda.is_available()
        and torch.cuda.is_initialized()
        and torch.cuda.is_current_stream_capturing()
    ):
        return "during CUDA-graph capture"
    return ""
