"""Ahead-of-time artifacts: what a call costs in C and from Python, and whether every example's
result is bitwise the JIT's where Triton cannot be imported.

    python benchmarks/aot.py --out "$OUT" [--parts dispatch launch python equal programs]

    dispatch  ns of a call beside the driver, over a driver that does nothing: in C (<= 40 asked),
              and through the Python module (<= 250 asked)
    launch    in C, a launch through the artifact over one by cuLaunchKernelEx in a loop (<= 1.2)
    python    a launch through the Python module over `kernel[grid]` (<= 0.35)
    equal     vector_add, matmul and fused_moe: bit for bit, the artifact's side without Triton
    programs  vector_add's C++ and CUDA programs: their sums are right

Writes `aot.json`. All but `dispatch` need a GPU. A part that fails is a row with its message.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gristmill import aot
from gristmill.bench.stamp import Stamp
from gristmill.measure.statistics import median, paired_ratio

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
EXAMPLES = ROOT / "examples" / "aot"
SIDE = Path(__file__).with_name("aot_side.py")
sys.path[:0] = [str(TESTS), str(TESTS / "cpu"), str(TESTS / "users")]
MAX = {"c_ns": 40, "python_ns": 250, "launch": 1.2, "python": 0.35}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cases", type=int, help="of fused_moe, only so many")
    parser.add_argument("--commit")
    arguments = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts:
            place = Path(folder, part)
            place.mkdir()
            try:
                found[part] = PARTS[part](place, arguments)
            except Exception as error:
                found[part] = {"ok": False, "error": f"{type(error).__name__}: {error}"[-4000:]}
            print(f"{part}: {json.dumps(found[part])[:1000]}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stamp = Stamp.of(device, arguments.commit).to_json()
    report = {"stamp": stamp, "asked": MAX, "results": found}
    (arguments.out / "aot.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(one["ok"] for one in found.values()) else 1


def dispatch(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A call beside the driver, in C and through the Python module."""
    import aot_module_process as process  # type: ignore[import]

    import aot_c_cases as cases  # type: ignore[import]

    del arguments
    drivers = folder / "drivers"
    drivers.mkdir()
    cases.fake_driver(drivers, "-O2")
    pair = process.build(folder / "pair", "pair", [cases.add_entry("pair_add")])
    sources = [cases.DATA / "latency.c", pair / "pair.c", "-ldl", "-lpthread"]
    cases.compiled("gcc", "-std=gnu11", "-O2", f"-I{pair}", *sources, "-o", folder / "latency")
    environment = cases.child_environment(drivers)
    environment["GRISTMILL_CACHE_DIR"] = str(folder / "cache")
    in_c = float(_answer([folder / "latency"], environment))
    tensors = process.device_tensors(folder)
    taken = _side("pair", "calls", pair, tensors, environment=environment)
    in_python = median(taken)
    ok = in_c <= MAX["c_ns"] and in_python <= MAX["python_ns"]
    return {"ok": ok, "c_ns": in_c, "python_ns": in_python}


def launch(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A launch in C, over one by the driver alone."""
    from aot_kernels import _axpy_kernel  # type: ignore[import]

    import aot_c_cases as cases  # type: ignore[import]

    del arguments
    pointer = aot.Ptr("fp32", align=[1])
    kernel = aot.Kernel(_axpy_kernel, "axpy").spec(
        x_ptr=pointer,
        y_ptr=pointer,
        out_ptr=pointer,
        n=aot.Int([None], widths=[32]),
        alpha=aot.Float("fp32"),
        BLOCK=[256],
    )
    report = kernel.build(folder / "real", _arch())
    (binary,) = (report.folder / "kernels").iterdir()
    flags = ["-std=gnu11", "-O2", f"-I{report.folder}", f'-DBINARY="{binary}"']
    sources = [cases.DATA / "launches.c", report.folder / "real.c", "-ldl", "-lpthread"]
    cases.compiled("gcc", *flags, *sources, "-o", folder / "launches")
    artifact_us, raw_us = map(float, _answer([folder / "launches"]).split())
    ratio = artifact_us / raw_us
    return {
        "ok": ratio <= MAX["launch"],
        "artifact_us": artifact_us,
        "raw_us": raw_us,
        "ratio": ratio,
    }


def python(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A launch from Python, over the JIT's."""
    del arguments
    taken = _side("vector_add", "times", _built("vector_add", folder / "add"))
    ratio = paired_ratio(taken["artifact_us"], taken["jit_us"])
    found = {name: median(samples) for name, samples in taken.items()}
    return {"ok": ratio.value <= MAX["python"], **found, "ratio": ratio.value}


def equal(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every example's results, against the JIT's."""
    found: dict[str, Any] = {}
    for example in ("vector_add", "matmul"):
        artifact = _built(example, folder / example)
        sides = [_side(example, side, artifact) for side in ("artifact", "jit")]
        same = sum(a == b for a, b in zip(*sides, strict=True))
        found[example] = {"same": same, "cases": len(sides[0])}
    artifact = _built("fused_moe", folder / "fused_moe")
    more = [] if arguments.cases is None else ["--first", str(arguments.cases)]
    command = [sys.executable, EXAMPLES / "fused_moe" / "compare.py", artifact, *more]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    found["fused_moe"] = {"said": (done.stdout + done.stderr)[-2000:], "exit": done.returncode}
    counted = (found[name] for name in ("vector_add", "matmul"))
    ok = all(one["same"] == one["cases"] for one in counted) and done.returncode == 0
    return {"ok": ok, **found}


def programs(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The programs of vector_add, built by CMake."""
    import aot_c_cases as cases  # type: ignore[import]

    del arguments
    artifact = _built("vector_add", folder / "add")
    cuda = shutil.which("nvcc") is not None
    options = [f"-DARTIFACT={artifact}", f"-DWITH_CUDA={'ON' if cuda else 'OFF'}"]
    options.append(f"-DCMAKE_CUDA_ARCHITECTURES={_arch().removeprefix('sm_')}")
    source = EXAMPLES / "vector_add"
    cases.compiled("cmake", "-S", source, "-B", folder / "build", *options)
    cases.compiled("cmake", "--build", folder / "build")
    names = ["vector_add", *(["vector_add_cuda"] if cuda else [])]
    said = {name: _answer([folder / "build" / name]).strip() for name in names}
    return {"ok": all(text == "the sums are right" for text in said.values()), **said}


PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "dispatch": dispatch,
    "launch": launch,
    "python": python,
    "equal": equal,
    "programs": programs,
}


def _arch() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def _built(example: str, out: Path) -> Path:
    """An example, built by the command line for the device here."""
    spec = EXAMPLES / example / "spec.py"
    command = [sys.executable, "-m", "gristmill", "aot", "build", spec, "-t", _arch(), "-o", out]
    _answer(command)
    return out


def _side(example: str, side: str, *paths: Path, environment: dict[str, str] | None = None) -> Any:
    """What a side of a comparison found, in a process of its own."""
    return json.loads(_answer([sys.executable, SIDE, example, side, *paths], environment))


def _answer(command: list[Any], environment: dict[str, str] | None = None) -> str:
    """What a program prints.

    Raises:
        RuntimeError: it fails.
    """
    environment = {**(environment or os.environ)}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=540,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
