"""gristmill: Triton operators for PyTorch, the fastest correct implementation chosen by measurement
and remembered.

import torch, gristmill as gm
y = gm.rms_norm(x, weight)                    # direct: the plan if there is one, the prior if not
matmul = gm.get_op("matmul", (a, b))          # selects, and tunes if this problem is new
y = matmul(a, b)
print(gm.explain("matmul", (a, b)))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gristmill.errors import (
    ArtifactError,
    CacheError,
    CompileError,
    FrozenError,
    GristmillError,
    InvalidConfigError,
    InvalidInputError,
    MissingExtraError,
    NoValidConfigError,
    PackError,
    RegistrationError,
    StrategyError,
    TuningError,
    UnknownOpError,
    UnsupportedProblemError,
)

if TYPE_CHECKING:
    from gristmill import nn
    from gristmill.ops._dispatch import register_ops
    from gristmill.ops.add_layer_norm import add_layer_norm
    from gristmill.ops.apply_rotary_pos_emb import apply_rotary_pos_emb
    from gristmill.ops.bound_op import BoundOp
    from gristmill.ops.explain import explain
    from gristmill.ops.gelu import gelu
    from gristmill.ops.gelu_and_mul import gelu_and_mul
    from gristmill.ops.get_op import get_op
    from gristmill.ops.layer_norm import layer_norm
    from gristmill.ops.matmul import matmul
    from gristmill.ops.partial_rotary_emb import PartialRotaryEmb, partial_rotary_emb
    from gristmill.ops.plans import export_plans, freeze, import_plans, thaw
    from gristmill.ops.relu2_and_mul import relu2_and_mul
    from gristmill.ops.rms_norm import rms_norm
    from gristmill.ops.rope_tables import rope_tables
    from gristmill.ops.silu_and_mul import silu_and_mul
    from gristmill.ops.tune import tune
    from gristmill.ops.tune_many import tune_many
    from gristmill.tuners.autotune import autotune
    from gristmill.tuners.tuner import TritonAutoTuner

__version__ = "0.1.0"

# Where the other public names live: imported at their first use, so that `import gristmill` costs
# next to nothing.
_HOME = {
    "BoundOp": "gristmill.ops.bound_op",
    "PartialRotaryEmb": "gristmill.ops.partial_rotary_emb",
    "TritonAutoTuner": "gristmill.tuners.tuner",
    "add_layer_norm": "gristmill.ops.add_layer_norm",
    "apply_rotary_pos_emb": "gristmill.ops.apply_rotary_pos_emb",
    "autotune": "gristmill.tuners.autotune",
    "explain": "gristmill.ops.explain",
    "export_plans": "gristmill.ops.plans",
    "freeze": "gristmill.ops.plans",
    "gelu": "gristmill.ops.gelu",
    "gelu_and_mul": "gristmill.ops.gelu_and_mul",
    "get_op": "gristmill.ops.get_op",
    "import_plans": "gristmill.ops.plans",
    "layer_norm": "gristmill.ops.layer_norm",
    "matmul": "gristmill.ops.matmul",
    "partial_rotary_emb": "gristmill.ops.partial_rotary_emb",
    "register_ops": "gristmill.ops._dispatch",
    "relu2_and_mul": "gristmill.ops.relu2_and_mul",
    "rms_norm": "gristmill.ops.rms_norm",
    "rope_tables": "gristmill.ops.rope_tables",
    "silu_and_mul": "gristmill.ops.silu_and_mul",
    "thaw": "gristmill.ops.plans",
    "tune": "gristmill.ops.tune",
    "tune_many": "gristmill.ops.tune_many",
}

__all__ = [
    "ArtifactError",
    "BoundOp",
    "CacheError",
    "CompileError",
    "FrozenError",
    "GristmillError",
    "InvalidConfigError",
    "InvalidInputError",
    "MissingExtraError",
    "NoValidConfigError",
    "PackError",
    "PartialRotaryEmb",
    "RegistrationError",
    "StrategyError",
    "TritonAutoTuner",
    "TuningError",
    "UnknownOpError",
    "UnsupportedProblemError",
    "add_layer_norm",
    "apply_rotary_pos_emb",
    "autotune",
    "explain",
    "export_plans",
    "freeze",
    "gelu",
    "gelu_and_mul",
    "get_op",
    "import_plans",
    "layer_norm",
    "matmul",
    "nn",
    "partial_rotary_emb",
    "register_ops",
    "relu2_and_mul",
    "rms_norm",
    "rope_tables",
    "silu_and_mul",
    "thaw",
    "tune",
    "tune_many",
]


def __getattr__(name: str) -> Any:
    if name == "nn":
        return importlib.import_module("gristmill.nn")
    if name not in _HOME:
        raise AttributeError(f"module 'gristmill' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({"__version__", *__all__})
