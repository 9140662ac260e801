"""The compiled reference: `torch.compile` of an op's reference for one problem, shared by every
op's `inductor.py`."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from typing import Any

import torch

from gristmill.core.op import Op

_serial = itertools.count()


def compile_reference(op: Op) -> Callable[..., Any]:
    """A compiled function of the op's reference, specialised on the shapes of its first call (which
    compiles it)."""
    reference = op.reference
    # Dynamo counts recompilations by code object, and gives up after a few: each build gets a code
    # object of its own.
    code = reference.__code__.replace(co_name=f"{op.name}_{next(_serial)}")
    clone = types.FunctionType(
        code, reference.__globals__, code.co_name, reference.__defaults__, reference.__closure__
    )
    compiled = torch.compile(clone, dynamic=False, fullgraph=True)

    def call(*values: Any) -> Any:
        # Inductor may pad a product's rows (seen: float32, N = 131); the contract is a contiguous
        # result.
        result = compiled(*values)
        if isinstance(result, torch.Tensor):
            return result.contiguous()
        return tuple(tensor.contiguous() for tensor in result)

    return call
