"""A project that installs rms_norm, silu_and_mul and matmul in torch, without Triton and gristmill.

    python examples/aot/torch_ops/make.py out/fastops --target sm_90 [--op rms_norm ...]
    pip install out/fastops

With no GPU at hand; for the sizes of the operators' workloads (Llama-3, Qwen3, ...), with the plans
of this machine's store and of the shipped packs. What does not compile is named and left out.
"""

from __future__ import annotations

import argparse

from gristmill import aot

OPS = ("rms_norm", "silu_and_mul", "matmul")


def main() -> None:
    parser = argparse.ArgumentParser(description="Operators for torch, compiled ahead of time.")
    parser.add_argument("out", help="the project's folder: new or empty")
    parser.add_argument("--target", action="append", required=True, help="sm_80, sm_90, ...")
    parser.add_argument("--op", action="append", choices=OPS, help="default: all of them")
    parser.add_argument("--name", default="fastops", help="of the package and the namespace")
    given = parser.parse_args()
    ops = [aot.op_kernels(op, given.target) for op in given.op or OPS]
    for op in ops:
        for note in op.notes:
            print(f"{op.function.name}: {note}")
    project = aot.wheel(ops, given.out, name=given.name, targets=given.target, strict=False)
    print(f"{project}: pip install {project}, then torch.ops.{given.name}.<operator>")


if __name__ == "__main__":
    main()
