"""Llama-3-8B's MLP block under `torch.compile(fullgraph=True)`: our ops against ATen's, both
compiled by Inductor, forward and training, launches alternated.

    python benchmarks/llama_mlp.py --out "$OUT" [--tune 8] [--tokens 1 16 512 4096]

The block is `x + silu_and_mul(rms_norm(x) @ gate_up.t()) @ down.t()`. Writes `llama_mlp.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

import gristmill as gm
from gristmill import settings
from gristmill.bench.stamp import Stamp
from gristmill.measure.statistics import median, never_slower, paired_ratio
from gristmill.measure.timing import timer

HIDDEN, INTERMEDIATE, EPS = 4096, 14336, 1e-5
Weights = tuple[Tensor, Tensor, Tensor]


def with_ours(x: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor) -> Any:
    hidden = gm.silu_and_mul(gm.matmul(gm.rms_norm(x, norm, EPS), gate_up.t()))
    return x + gm.matmul(hidden, down.t())


def with_aten(x: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor) -> Any:
    gate, up = (rms_norm(x, norm.shape, norm, EPS) @ gate_up.t()).chunk(2, dim=-1)
    return x + (silu(gate) * up) @ down.t()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 512, 4096])
    parser.add_argument("--tune", type=float, default=8.0, help="seconds a problem; 0: do not tune")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--scale", type=int, default=1, help="divides both widths (to try it out)")
    parser.add_argument("--commit")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    with (
        tempfile.TemporaryDirectory() as folder,
        settings.override(cache_dir=Path(folder), progress=False),
    ):
        for tokens, training in itertools.product(arguments.tokens, (False, True)):
            results.append(measured(arguments, device, tokens, training))
            print(line(results[-1]), flush=True)
    data = {"stamp": Stamp.of(device, arguments.commit).to_json(), "results": results}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "llama_mlp.json").write_text(json.dumps(data, indent=1) + "\n")
    return 0 if all(r["error"] is None for r in results) else 1


def measured(
    arguments: argparse.Namespace, device: torch.device, tokens: int, training: bool
) -> dict[str, Any]:
    """Both blocks checked against float64, then timed in turns."""
    generator = torch.Generator(device).manual_seed(0)

    def values(*shape: int) -> Tensor:
        scale = shape[-1] ** -0.5
        made = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) * scale
        return made.requires_grad_(training)

    hidden, wide = HIDDEN // arguments.scale, INTERMEDIATE // arguments.scale
    x, norm = values(tokens, hidden), values(hidden)
    weights = (norm, values(2 * wide, hidden), values(hidden, wide))
    upstream = values(tokens, hidden).detach()
    if arguments.tune > 0:
        tune(x, weights, upstream, arguments.tune, training)
    calls = {
        "ours": step(with_ours, x, weights, upstream, training),
        "aten": step(with_aten, x, weights, upstream, training),
    }
    result: dict[str, Any] = {"tokens": tokens, "training": training, "error": None}
    truth = step(with_aten, x, weights, upstream, training, exact=True)()
    for name, call in calls.items():
        worst = max(map(relative_error, call(), truth))
        result[f"{name}_error"] = worst
        if not worst < 2e-2:
            result["error"] = f"{name} is off by {worst:.2g}"
            return result
    clock = timer(device)
    hosts = [clock.host_us(call, 500.0) for call in calls.values()]
    devices = clock.device_us(list(calls.values()), arguments.pairs, host_us=max(hosts))
    for name, host, times in zip(calls, hosts, devices, strict=True):
        result[f"{name}_us"], result[f"{name}_host_us"] = median(times), host
    for key, samples in (("device", devices), ("eager", eager(devices, hosts))):
        ratio = paired_ratio(samples[1], samples[0])
        result[f"{key}_speedup"] = (ratio.value, ratio.low, ratio.high)
        result[f"{key}_never_slower"] = never_slower(*samples)
    return result


def eager(devices: list[list[float]], hosts: list[float]) -> list[list[float]]:
    """What a caller waits for: the longer of device and host time."""
    return [[max(us, host) for us in times] for times, host in zip(devices, hosts, strict=True)]


def tune(x: Tensor, weights: Weights, upstream: Tensor, budget_s: float, training: bool) -> None:
    """The problems of the block, and those of its backward pass."""
    norm, gate_up, down = (w.detach() for w in weights)
    x = x.detach()
    normed = gm.rms_norm(x, norm, EPS)
    product = gm.matmul(normed, gate_up.t())
    gated = gm.silu_and_mul(product)
    problems: list[tuple[str, tuple[Any, ...]]] = [
        ("rms_norm", (x, norm, EPS)),
        ("matmul", (normed, gate_up.t())),
        ("silu_and_mul", (product,)),
        ("matmul", (gated, down.t())),
    ]
    if training:
        grad_gated, grad_product = gm.matmul(upstream, down), torch.empty_like(product)
        problems += [
            ("matmul", (upstream, down)),
            ("matmul", (gated.t(), upstream)),
            ("silu_and_mul_backward", (grad_gated, product)),
            ("matmul", (grad_product, gate_up)),
            ("matmul", (normed.t(), grad_product)),
            ("rms_norm_backward", (torch.empty_like(x), x, norm, EPS)),
        ]
    for name, args in problems:
        gm.get_op(name, args, budget_s=budget_s)


def step(
    block: Callable[..., Any],
    x: Tensor,
    weights: Weights,
    upstream: Tensor,
    training: bool,
    exact: bool = False,
) -> Callable[[], tuple[Tensor, ...]]:
    """The block compiled, or in float64 for `exact`; with its gradients where it is trained."""
    if exact:
        x, *rest = (t.detach().double().requires_grad_(training) for t in (x, *weights))
        leaves, upstream, function = (x, *rest), upstream.double(), block
    else:
        leaves, function = (x, *weights), torch.compile(block, fullgraph=True, dynamic=False)

    def call() -> tuple[Tensor, ...]:
        out = function(*leaves)
        return (out, *torch.autograd.grad(out, leaves, upstream)) if training else (out,)

    call()
    return call


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


def line(result: dict[str, Any]) -> str:
    kind = "forward and backward" if result["training"] else "forward"
    if result["error"]:
        return f"{result['tokens']:5} tokens, {kind}: {result['error']}"
    text = (
        f"{result['tokens']:5} tokens, {kind}: ours {result['ours_us']:.1f} us (host "
        f"{result['ours_host_us']:.1f}), ATen {result['aten_us']:.1f} (host "
        f"{result['aten_host_us']:.1f})"
    )
    for key in ("device", "eager"):
        value, low, high = result[f"{key}_speedup"]
        verdict = "never slower" if result[f"{key}_never_slower"] else "slower"
        text += f"; {key} {value:.3f}x ({low:.3f} to {high:.3f}), {verdict}"
    return text


if __name__ == "__main__":
    sys.exit(main())
