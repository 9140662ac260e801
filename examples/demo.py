"""Tune two layers of Llama-3-8B here, look at the candidates, check and time what was chosen: `make
demo`.

Takes about a minute, GPU or not. On a CPU the vendor's and the compiled implementation compete; on
a GPU our Triton kernels do too.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.rule import Rule

import gristmill as gm
from gristmill import settings
from gristmill.bench.plain import plain_call
from gristmill.bench.results import outside_text
from gristmill.cache.store import store
from gristmill.cli.explain import print_explanation
from gristmill.cli.output import console
from gristmill.core.op import Op, as_tuple
from gristmill.core.registry import load
from gristmill.measure.statistics import median, paired_ratio
from gristmill.measure.timing import timer
from gristmill.verify import compare, truth

BUDGET_S = 60.0
PROBLEMS = (
    ("rms_norm", "llama3-8b-m16", "RMSNorm, 16 tokens"),
    ("matmul", "llama3-8b-qkv-m16", "QKV projection, 16 tokens"),
    ("rms_norm", "llama3-8b-m512", "RMSNorm, 512 tokens"),
    ("matmul", "llama3-8b-qkv-m64", "QKV projection, 64 tokens"),
)
PAIRS = 50
ROWS = 8


def main() -> None:
    out = console()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    out.print(
        f"[bold]gristmill[/] on {name}: {len(PROBLEMS)} problems of Llama-3-8B, {BUDGET_S:.0f} "
        f"seconds in all"
    )
    start = time.monotonic()
    deadline = start + BUDGET_S
    done = 0
    for index, (op, workload, title) in enumerate(PROBLEMS):
        left_s = deadline - time.monotonic()
        if left_s < 2.0:
            out.print(
                f"\nleft out, the {BUDGET_S:.0f} seconds are over: "
                f"{', '.join(t for _, _, t in PROBLEMS[index:])}"
            )
            break
        out.print()
        out.print(Rule(title, align="left", style="cyan"))
        spec = load(op)
        generator = torch.Generator(device).manual_seed(0)
        values = spec.inputs(spec.workload(workload).problem, generator, spec.variants[0])
        bound = choose(out, op, values, left_s / (len(PROBLEMS) - index))
        explanation = gm.explain(op, values)
        print_explanation(out, explanation, ROWS)
        check(out, spec, bound, values, explanation.rows[0].device_us)
        done += 1
    farewell(out, done, time.monotonic() - start)


def choose(out: Console, op: str, values: tuple[Any, ...], budget_s: float) -> gm.BoundOp:
    """The operator for these arguments: from the store, or tuned now under a progress bar."""
    start = time.monotonic()
    known = gm.get_op(op, values, tune="never")
    if known.plan.origin == "tuned":
        out.print(f"known from an earlier run, ready in {(time.monotonic() - start) * 1e3:.0f} ms")
        return known
    bound = gm.get_op(op, values, budget_s=budget_s)
    out.print()
    return bound


def check(
    out: Console, op: Op, bound: gm.BoundOp, values: tuple[Any, ...], tuned_us: float | None
) -> None:
    """Compare the chosen operator with the float64 reference, and its time with torch's own and
    with what tuning measured."""
    references, magnitudes = truth(op, values)
    outputs = as_tuple(bound(*values))
    verdict = compare(outputs, references, magnitudes, op.bounds(bound.problem))
    judged = "[green]right[/]" if verdict.ok else f"[bold red]wrong[/] ({verdict.reason})"
    dtype = str(outputs[0].dtype).removeprefix("torch.")
    out.print(
        f"against float64: {judged}, the largest error is {verdict.error:.0%} of its bound "
        f"(rounding the exact result to {dtype} reaches 100%)"
    )
    name, plain = plain_call(op, values)
    plain_verdict = compare(as_tuple(plain()), references, magnitudes, op.bounds(bound.problem))
    if not plain_verdict.ok:
        out.print(f"{name} is {outside_text(plain_verdict.error)}")
    calls = [lambda: bound(*values), plain]
    clock = timer(values[0].device)
    clock.device_us(calls, 3)
    hosts = [clock.host_us(call, 50.0) for call in calls] if values[0].is_cuda else [0.0, 0.0]
    ours, theirs = clock.device_us(calls, PAIRS, max(hosts))
    ratio = paired_ratio(theirs, ours)
    out.print(
        f"against {name}: {median(ours):,.1f} us, {name} {median(theirs):,.1f} us on the device, "
        f"[bold]{ratio.value:.2f}x[/] "
        f"(95% interval {ratio.low:.2f} to {ratio.high:.2f})"
    )
    now_us = median(ours)
    if tuned_us and not 0.5 < now_us / tuned_us < 2.0:
        out.print(
            f"[yellow]tuning measured {tuned_us:,.1f} us for this: the machine was busy then, or "
            "is now[/]; `gristmill tune` measures again"
        )
    if any(hosts):
        out.print(f"on the host: {hosts[0]:.1f} us and {hosts[1]:.1f} us to issue a call")


def farewell(out: Console, done: int, seconds: float) -> None:
    """Where the plans are, and how to go on."""
    summary = store().summary()
    out.print()
    out.print(Rule("done", align="left", style="cyan"))
    if summary.unsaved:
        out.print(
            f"{done} problems in {seconds:.0f} s; their plans could not be kept on disk: "
            f"{summary.reason}"
        )
    else:
        out.print(
            f"{done} problems in {seconds:.0f} s; {summary.plans} plans and {summary.measurements} "
            f"measurements are kept in"
        )
        out.print(f"  {summary.path}", soft_wrap=True)
    out.print("Run this again and nothing is tuned. Go on with:")
    beside = Path(sys.executable).with_name("gristmill")
    program = "gristmill"
    if shutil.which(program) is None and beside.exists():
        program = os.path.relpath(beside)
    for command, what in (
        ("gristmill list", "the ops, their implementations and workloads"),
        ("gristmill explain rms_norm -w llama3-8b-m512", "every candidate of a problem"),
        ("gristmill tune matmul -w 'llama3-8b-o-*'", "tune more"),
        ("gristmill bench rms_norm -w llama3-8b-m512", "all providers, interleaved"),
        ("gristmill cache show", "what is remembered"),
    ):
        line = command.replace("gristmill", program, 1)
        out.print(f"  [bold]{line:<{40 + len(program)}}[/] {what}", soft_wrap=True)


if __name__ == "__main__":
    try:
        with settings.override(progress=True):
            main()
    except KeyboardInterrupt:
        sys.stderr.write(
            "interrupted: what was measured is kept; a problem that got a plan keeps it until "
            "`gristmill tune` searches on\n"
        )
        sys.exit(130)
