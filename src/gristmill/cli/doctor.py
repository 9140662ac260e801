"""Check that everything that gristmill needs works here, and say what to do about what does not.

Exit code 0 where nothing has failed (warnings are allowed), else 1.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import torch
import typer
from rich.markup import escape

from gristmill import __version__, settings
from gristmill.cache import lockfile, packs
from gristmill.cache.shipped import pack_name
from gristmill.cache.store import store
from gristmill.cli.options import Device, Json
from gristmill.cli.output import console, print_json, table, unwritable
from gristmill.cli.problems import chosen_device
from gristmill.core.op import Op
from gristmill.core.plan import Candidate
from gristmill.core.problem import Problem
from gristmill.core.provenance import provenance
from gristmill.core.registry import implementations, load, op_names
from gristmill.core.target import Target, device_target, named_target
from gristmill.errors import FrozenError, GristmillError, InvalidInputError, PackError
from gristmill.native.calls import calls, why_not
from gristmill.tuning.compiler import compile_candidate
from gristmill.tuning.measurer import Measurer

app = typer.Typer(add_completion=False)

Status = Literal["ok", "warn", "fail"]
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
MINIMUM = {"torch": (2, 11), "triton": (3, 6)}
TARGET_WITHOUT_GPU = "sm_90"
LOW_DISK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report: what was looked at, what was found, and what to do where that is not
    good."""

    name: str
    status: Status
    found: str
    advice: str = ""


@app.command()
def command(device: Device = None, as_json: Json = False) -> None:
    absent = ""
    try:
        where = chosen_device(device)
    except InvalidInputError:
        if device is None or not device.startswith("cuda"):
            raise
        absent, where = device, torch.device("cpu")  # that it is not there is what is to be shown
    checks = list(_checks(where))
    if absent:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = f"torch sees {count} CUDA device(s); the checks are of the CPU"
        checks.append(Check(f"--device {absent}", "fail", found, "Do what `driver` says."))
    failed = any(c.status == "fail" for c in checks)
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(c) for c in checks]})
    else:
        _print(checks)
    if failed:
        raise typer.Exit(1)


def _print(checks: list[Check]) -> None:
    rows = table("", "check", "found")
    for c in checks:
        found = escape(c.found) + (f"\n[bold]{escape(c.advice)}[/]" if c.advice else "")
        rows.add_row(f"[{STYLES[c.status]}]{c.status}[/]", c.name, found)
    out = console()
    out.print(rows)
    counts = {s: sum(c.status == s for c in checks) for s in STYLES}
    out.print(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")


def _checks(device: torch.device) -> Iterator[Check]:
    yield Check("gristmill", "ok", f"{__version__} in {Path(__file__).resolve().parents[1]}")
    yield _python()
    yield _version("torch", torch.__version__)
    yield _triton()
    yield _driver()
    target = device_target(device)
    yield _device(device, target)
    yield from (_guarded(name, check) for name, check in _active_checks(device, target))
    yield _store()
    yield _pack(target)
    yield from _lock_file(target)
    yield _disk()
    yield _settings()


def _active_checks(device: torch.device, target: Target) -> list[tuple[str, Callable[[], Check]]]:
    compiled_for = target if target.is_gpu else named_target(TARGET_WITHOUT_GPU)
    return [
        ("compiler", lambda: _compiler(compiled_for)),
        ("C++ compiler", _cxx),
        ("bound calls", _calls),
        ("worker", lambda: _worker(device, target)),
    ]


def _calls() -> Check:
    module = calls()
    if module is not None:
        return Check("bound calls", "ok", f"in C, {module.__file__}")
    advice = (
        "Calls go through Python, a microsecond slower. Install a C compiler and Python's headers."
    )
    return Check("bound calls", "warn", why_not(), advice)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (GristmillError, RuntimeError, OSError) as error:
        return Check(
            name, "fail", f"{type(error).__name__}: {error}", "Report this with the text above."
        )


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    return Check("python", "ok", found)


def _version(name: str, found: str) -> Check:
    parts = tuple(int(p) for p in found.split("+", maxsplit=1)[0].split(".")[:2])
    if parts < MINIMUM[name]:
        wanted = ".".join(map(str, MINIMUM[name]))
        return Check(name, "fail", found, f"Install {name} {wanted} or newer.")
    return Check(name, "ok", found)


def _triton() -> Check:
    try:
        return _version("triton", importlib.metadata.version("triton"))
    except importlib.metadata.PackageNotFoundError:
        return Check("triton", "fail", "not installed", "Install it: `pip install triton`.")


def _driver() -> Check:
    built = torch.version.cuda or torch.version.hip
    if built is None:
        return Check(
            "driver",
            "warn",
            "this torch is built for the CPU only",
            "For a GPU, install a CUDA or ROCm build of torch.",
        )
    if not torch.cuda.is_available():
        advice = "Check `nvidia-smi` (or `rocm-smi`) and CUDA_VISIBLE_DEVICES."
        return Check("driver", "warn", f"torch is built for CUDA {built} and sees no GPU", advice)
    version = int(json.loads(provenance())["driver"] or 0)
    return Check(
        "driver",
        "ok",
        f"CUDA driver {version // 1000}.{version % 1000 // 10}, torch built for {built}",
    )


def _device(device: torch.device, target: Target) -> Check:
    units = "SMs" if target.is_gpu else "threads"
    found = f"{device}: {target.name}, {target.arch}, {target.num_sms} {units}"
    if target.memory_bytes:
        free_bytes, _ = torch.cuda.mem_get_info(device)
        found += f", {free_bytes / 2**30:.1f} of {target.memory_bytes / 2**30:.1f} GiB free"
    others = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Check("device", "ok", found + (f" (1 of {others} GPUs)" if others > 1 else ""))


def _smallest() -> tuple[Op, Problem]:
    """The cheapest workload of an op with a Triton implementation."""
    ops = [
        op
        for op in map(load, op_names())
        if any(i.kind == "triton" for i in implementations(op.name))
    ]
    pairs = [(op, w.problem) for op in ops for w in op.workloads]
    return min(pairs, key=lambda pair: pair[0].cost(pair[1]).size_bytes)


def _compiler(target: Target) -> Check:
    op, problem = _smallest()
    able = [
        i
        for i in implementations(op.name)
        if i.kind == "triton" and i.why_not(problem, target) is None
    ]
    if not able:
        return Check(
            "compiler",
            "warn",
            f"no Triton kernel of {op.name} takes {problem} on {target.name}",
            "",
        )
    start = time.perf_counter()
    outcome = compile_candidate(
        problem, target, Candidate(able[0].name, able[0].config(None, problem, target))
    )
    seconds = time.perf_counter() - start
    what = f"{able[0].id} for {target.arch}"
    if not outcome.ok:
        return Check(
            "compiler",
            "fail",
            f"{what}: {outcome.reason}",
            "Check TRITON_PTXAS_PATH and TRITON_CACHE_DIR.",
        )
    return Check("compiler", "ok", f"{what} in {seconds:.2f} s")


def _cxx() -> Check:
    found = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if found is None:
        advice = (
            "Install g++: without it Inductor cannot compile for a CPU, nor Triton its launcher."
        )
        return Check("C++ compiler", "warn", "none on PATH", advice)
    return Check("C++ compiler", "ok", found)


def _worker(device: torch.device, target: Target) -> Check:
    op, problem = _smallest()
    able = [
        i
        for i in implementations(op.name)
        if i.kind != "compiled" and i.why_not(problem, target) is None
    ]
    impl = min(able, key=lambda i: i.kind != "vendor")
    start = time.perf_counter()
    with Measurer(problem, device) as measurer:
        outcome = measurer.measure(Candidate(impl.name, impl.config(None, problem, target)), None)
    seconds = time.perf_counter() - start
    if not outcome.ok or outcome.device_us is None:
        advice = "Tuning will fail in the same way; the line above says how."
        return Check("worker", "fail", f"{impl.id}: {outcome.status}: {outcome.reason}", advice)
    found = f"started, checked and timed {impl.id} in {seconds:.1f} s: {outcome.device_us:.1f} us"
    return Check("worker", "ok", found)


def _store() -> Check:
    summary = store().summary()
    found = f"{summary.path}: {summary.measurements:,} measurements, {summary.plans:,} plans"
    fault = "" if summary.state == "ok" else f"{summary.state}: {summary.reason}"
    fault = fault or unwritable(summary.path.parent)
    if not fault:
        return Check("plan store", "ok", found)
    advice = (
        "Make the folder writable, or set GRISTMILL_CACHE_DIR to one that is. "
        "Until then nothing is remembered."
    )
    return Check("plan store", "warn", f"{found}; {fault}", advice)


def _pack(target: Target) -> Check:
    """The shipped plans for this device, and which of them are of kernels that are others here."""
    path = settings.current().pack_dir / pack_name(target.key)
    if not path.exists():
        return Check("pack", "ok", f"none for {target.name}: what is not tuned here is untuned")
    try:
        pack = packs.read(path)
    except PackError as error:
        return Check("pack", "warn", str(error), "Until then what cannot be read is missing.")
    found = f"{path}: {len(pack.plans):,} plans"
    stale = [p.plan for p in pack.plans if not p.is_current]
    if not stale:
        return Check("pack", "ok", found)
    names = ", ".join(sorted({f"{p.op}/{p.candidate.implementation}" for p in stale}))
    found += f", {len(stale):,} of them stale: {names} changed since"
    return Check("pack", "warn", found, "They count as missing: tune, or make the pack again.")


def _lock_file(target: Target) -> Iterator[Check]:
    """The lock file that the settings name, if any."""
    path = settings.current().lock_file
    if path is None:
        return
    try:
        lock = lockfile.read_lock(path)
    except FrozenError as error:
        yield Check("lock file", "fail", str(error), "Every selection of this process fails.")
        return
    here = sum(p.plan.target == target.key for p in lock.plans)
    stale = sum(p.target == target.key for p in lock.stale())
    found = f"{path}: {here:,} plans for this device" + (f", {stale:,} stale" if stale else "")
    good = here and not stale
    yield Check("lock file", "ok" if good else "warn", found, "" if good else lockfile.ADVICE + ".")


def _disk() -> Check:
    folder = Path(tempfile.gettempdir())
    free_bytes = shutil.disk_usage(folder).free
    found = f"{free_bytes / 2**30:.1f} GiB free in {folder}"
    if free_bytes < LOW_DISK_BYTES:
        return Check("disk", "warn", found, "Free some: compilers and the worker write there.")
    return Check("disk", "ok", found)


def _settings() -> Check:
    now = settings.current()
    found = ", ".join(f"{f.name}={getattr(now, f.name)}" for f in fields(now))
    if unknown := settings.unknown_variables():
        advice = "; ".join(
            f"{name} is read by nothing" + (f" (did you mean {like}?)" if like else "")
            for name, like in sorted(unknown.items())
        )
        return Check("settings", "warn", found, f"{advice}. The README lists what is.")
    return Check("settings", "ok", found)
