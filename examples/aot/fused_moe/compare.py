"""The artifact's results against the JIT's, bit for bit, over a covering set of cases.

    gristmill aot build spec.py --out fused_moe
    python compare.py fused_moe            # needs a GPU; about 8 GiB of it

The artifact's calls run in a process in which importing Triton raises: a process each for the two
sides, results handed over by their digests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from covering import pairwise
from moe_call import FP8, Call, Config, arrange

from gristmill import aot

GROUP = 128
CONFIG = Config()


def inputs(case: dict[str, Any], seed: int, device: str = "cuda") -> dict[str, Any]:
    """Quantised values of a case, the same for the same seed. Weights are random bytes: in float32
    the largest of them would not fit."""
    m, n, k, experts = (case[name] for name in ("M", "N", "K", "E"))
    generator = torch.Generator(device).manual_seed(seed)

    def fp8(*shape: int) -> torch.Tensor:
        made = torch.empty(shape, dtype=torch.uint8, device=device)
        made.random_(0, 256, generator=generator)
        # 0x7f and 0xff are NaN; without their lowest bit they are the largest values.
        return made.where(made & 0x7F != 0x7F, made & 0xFE).view(FP8)

    def scales(*shape: int) -> torch.Tensor:
        made = torch.rand(shape, generator=generator, device=device)
        return (made + 0.5) / 4096

    groups = -(-k // GROUP)
    scores = torch.rand(m, experts, generator=generator, device=device)
    weights, ids = scores.topk(case["top_k"], dim=1)
    return {
        "a": fp8(m, k),
        "b": fp8(experts, n, k),
        "topk_weights": weights,
        "topk_ids": ids,
        "a_scale": scales(m, groups),
        "b_scale": scales(experts, -(-n // GROUP), groups),
        "group": (GROUP, GROUP),
        "multiply_weights": case["weighted"],
        "out_dtype": getattr(torch, case["out"]),
    }


def by_artifact(artifact: Any, call: Call, config: Config = CONFIG) -> torch.Tensor:
    """Run a call through the artifact's Python module."""
    launched = (config.num_warps, config.num_stages, *call.grid)
    artifact.fused_moe_kernel(*call.arguments, *launched)
    return call.output


def by_jit(call: Call, config: Config = CONFIG) -> torch.Tensor:
    """Run a call through Triton's JIT."""
    import triton.language as tl
    from moe_kernel import fused_moe_kernel

    arguments = [
        getattr(tl, str(a).removeprefix("torch.")) if isinstance(a, torch.dtype) else a
        for a in call.arguments
    ]
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    fused_moe_kernel[call.grid](*arguments, **options, enable_fp_fusion=True)
    return call.output


def digest(output: torch.Tensor) -> str:
    """The SHA-256 of a result's bytes."""
    return hashlib.sha256(output.view(torch.uint8).cpu().numpy().tobytes()).hexdigest()


def run(side: str, path: Path, cases: list[dict[str, Any]]) -> list[str]:
    """The digests of every case's result."""
    artifact = None
    if side == "artifact":
        sys.modules["triton"] = None  # type: ignore[assignment] - importing it raises from here on
        artifact = aot.load(path)
    found = []
    for seed, case in enumerate(cases):
        call = arrange(**inputs(case, seed))
        call.output.fill_(float("nan"))
        output = by_jit(call) if artifact is None else by_artifact(artifact, call)
        if output.isnan().any():
            raise SystemExit(f"{side}: {case}: the result has NaN: something was not written")
        found.append(digest(output))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--side", choices=("artifact", "jit"), help="print one side's digests")
    parser.add_argument("--first", type=int, help="only so many cases")
    arguments = parser.parse_args()
    cases = pairwise()[: arguments.first]
    if arguments.side is not None:
        print(json.dumps(run(arguments.side, arguments.artifact, cases)))
        return 0
    sides = {}
    for side in ("artifact", "jit"):
        more = [] if arguments.first is None else ["--first", str(arguments.first)]
        command = [sys.executable, __file__, str(arguments.artifact), "--side", side, *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        sides[side] = json.loads(done.stdout)
    wrong = [c for c, a, b in zip(cases, *sides.values(), strict=True) if a != b]
    for case in wrong:
        print(f"differs: {case}")
    print(f"{len(cases) - len(wrong)} of {len(cases)} cases are bitwise the JIT's")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
