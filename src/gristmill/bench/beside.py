"""The Markdown of results that are no op's report: the cost of a call, the compiled MLP block, what
the tests and the sanitizer counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def overhead_markdown(data: Mapping[str, Any]) -> str:
    """Host time of a call against the floor, and what a new process pays."""
    calls = list(dict.fromkeys(name for times in data["host_times"] for name in times["times_us"]))
    lines = [f"**Host time of a call**, {data['stamp']['device']}: us, and over F", ""]
    heads = [*calls, "new size"]
    lines += [f"| problem | kernel | {' | '.join(heads)} |", f"|---|---|{'---:|' * len(heads)}"]
    for times in data["host_times"]:
        cells = [*(_host_cell(times, name) for name in calls), f"{times['new_size_us']:.0f}"]
        kernel = times["kernel"].split()[0]
        lines.append(f"| {times['problem']} | {kernel} | {' | '.join(cells)} |")
    lines += ["", "F allocates the output and calls `CompiledKernel.run` of the same kernel."]
    if "launcher" in calls:
        lines[-1] += " `launcher` is that run alone, and `bound out` (with `out=`) is over it."
    lines[-1] += " New size: a direct call with a token count that was not met before."
    lines += [f"{t['problem']}: F is {t['reason']}." for t in data["host_times"] if t["reason"]]
    lines += ["", f"`import gristmill` adds {data['import_ms']:.1f} ms to `import torch`."]
    for got in data["get_op"]:
        lines.append(
            f"A `get_op` of rms_norm {got['rows']}x{got['width']} in a new process takes "
            f"{got['get_op_ms']:.1f} ms "
            f"({got['implementation']}, {got['origin']})."
        )
    return "\n".join(lines)


def _host_cell(times: Mapping[str, Any], name: str) -> str:
    us, ratio = times["times_us"].get(name), times["ratios"].get(name)
    if us is None:
        return ""
    return f"{us:.2f} ({ratio[0]:.2f}x)" if ratio else f"{us:.2f}"


def mlp_markdown(data: Mapping[str, Any]) -> str:
    """The compiled MLP block with our ops against the same block with ATen's."""
    stamp = data["stamp"]
    lines = [
        f"**Llama-3-8B's MLP block under `torch.compile(fullgraph=True)`**, {stamp['device']}",
        "",
        "| tokens | pass | ATen us | gristmill us | device | eager |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for result in data["results"]:
        cells = [str(result["tokens"]), "forward and backward" if result["training"] else "forward"]
        if result["error"]:
            lines.append(f"| {' | '.join(cells)} | | | {result['error']} | |")
            continue
        cells += [_bound(result, "aten"), _bound(result, "ours")]
        for key in ("device", "eager"):
            value, low, high = result[f"{key}_speedup"]
            interval = "" if low is None else f" ({low:.2f} to {high:.2f})"
            verdict = "never slower" if result[f"{key}_never_slower"] else "**slower**"
            cells.append(f"{value:.2f}x{interval}, {verdict}")
        lines.append(f"| {' | '.join(cells)} |")
    explained = (
        "Eager: the longer of device and host time; in a CUDA graph the device's alone counts."
    )
    return "\n".join([*lines, "", f"{explained} {_origin(stamp)}"])


def tests_markdown(data: Mapping[str, Any]) -> str:
    """One line of a test run's counts."""
    total = data["total"]
    counts = ", ".join(f"{total[name]:,} {name}" for name in ("passed", "failed", "skipped"))
    steps = ", ".join(f"`tests/{name}`" for name in data["steps"])
    return f"{steps} on {data['device']}: {counts}. {_origin(data)}"


def sanitizer_markdown(data: Mapping[str, Any]) -> str:
    """What each tool of compute-sanitizer said of every Triton kernel."""
    verdicts = ", ".join(f"{tool} {found['verdict']}" for tool, found in data["tools"].items())
    return f"compute-sanitizer over every Triton kernel: {verdicts}. {_origin(data['stamp'])}"


def _bound(result: Mapping[str, Any], name: str) -> str:
    """Device time, and host time where a step is bound by it."""
    device_us, host_us = result[f"{name}_us"], result[f"{name}_host_us"]
    return f"{device_us:,.1f}" + (f" (host {host_us:,.1f})" if host_us > device_us else "")


def _origin(stamp: Mapping[str, Any]) -> str:
    changed = " with local changes" if stamp["dirty"] else ""
    return f"{stamp['date'][:10]}, {(stamp['commit'] or 'unknown commit')[:12]}{changed}."


# By file name, in the order in which they are shown.
BESIDE: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "overhead.json": overhead_markdown,
    "llama_mlp.json": mlp_markdown,
    "tests.json": tests_markdown,
    "tests-two.json": tests_markdown,
    "sanitizer.json": sanitizer_markdown,
}
