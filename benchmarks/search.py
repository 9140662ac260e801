"""What a search costs and finds: cold matmul problems against their recorded spaces, Llama-3-8B's
workloads in one go, and `@gristmill.autotune` against `@triton.autotune`.

    python benchmarks/search.py --out "$OUT" [--parts cold llama autotune] [--cache FOLDER]

    cold      the portfolio, nothing known before: at most 200 candidates and 25 s of wall clock
              asked, and a config within 2% of the recorded space's best, both measured in turns
    llama     `tune_many` over the suite llama3-8b, a share of 6 minutes each (`--llama` seconds);
              `--cache` keeps its plans
    autotune  one kernel, one list of configs, two decorators, new caches: wall clock, and the
              configs found measured in turns; then a space ten times as large in Triton's time

Writes `search.json`. Needs a GPU. A part that fails is a row with its message.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

import gristmill as gm
from gristmill import settings
from gristmill.bench.results import write_json
from gristmill.bench.stamp import Stamp
from gristmill.bench.suites import suite_named
from gristmill.compile.bound import bind
from gristmill.core.plan import Candidate
from gristmill.core.problem import Problem
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.measure.statistics import median, paired_ratio
from gristmill.measure.timing import timer
from gristmill.ops.tune_many import tune_many
from gristmill.tuning.recorded import load_recording

ROOT = Path(__file__).parents[1]
SPACES = ROOT / "benchmarks" / "spaces" / "nvidia-h200"
EXAMPLES = ROOT / "examples"
CANDIDATES, SECONDS, WITHIN, LLAMA_S = 200, 25.0, 1.02, 360.0
SIZE = 4096
PAIRS = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cache", type=Path, help="where `llama` keeps its plans")
    parser.add_argument("--llama", type=float, default=330.0, help="seconds for all its problems")
    parser.add_argument("--commit")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, default=60.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments.budget)))
        return 0
    device = torch.device("cuda", 0)
    found: dict[str, Any] = {}
    for part in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            cache = (arguments.cache or place).resolve() if part == "llama" else place
            try:
                with settings.override(cache_dir=cache, pack_dir=place / "packs", progress=False):
                    found[part] = PARTS[part](device, arguments)
            except Exception as error:
                found[part] = {"ok": False, "error": f"{type(error).__name__}: {error}"[-2000:]}
        print(f"{part}: {json.dumps(found[part])[:1800]}", flush=True)
    stamp = Stamp.of(device, arguments.commit).to_json()
    asked = {"candidates": CANDIDATES, "seconds": SECONDS, "within": WITHIN, "llama_s": LLAMA_S}
    write_json(arguments.out / "search.json", {"stamp": stamp, "asked": asked, "results": found})
    return 0 if all(one["ok"] for one in found.values()) else 1


def cold(device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every recorded matmul, tuned from nothing."""
    del arguments
    paths = sorted(SPACES.glob("matmul-*.jsonl.gz"))
    rows = [_cold(device, path) for path in paths]
    return {"ok": all(row["ok"] for row in rows), "problems": rows}


def _cold(device: torch.device, path: Path) -> dict[str, Any]:
    recording = load_recording(path)
    times = recording.times()
    op, problem = load(recording.problem.op), recording.problem
    values = op.inputs(problem, torch.Generator(device).manual_seed(0), "normal")
    start = time.perf_counter()
    result = gm.tune(op.name, values, budget_s=SECONDS - 2, trials=CANDIDATES, strategy="portfolio")
    seconds = time.perf_counter() - start
    chosen, best = result.plans["graph"].candidate, min(times, key=lambda c: times[c])
    ours, recorded = _in_turns(device, problem, (chosen, best))
    ratio = paired_ratio(ours, recorded)
    tried = len(result.outcomes)
    ok = tried <= CANDIDATES and seconds <= SECONDS and ratio.value <= WITHIN
    return {
        "ok": ok,
        "problem": str(problem),
        "seconds": seconds,
        "candidates": tried,
        "chosen": str(chosen),
        "chosen_us": median(ours),
        "recorded_best": str(best),
        "recorded_best_us": median(recorded),
        "over_recorded_best": [ratio.value, ratio.low, ratio.high],
    }


def _in_turns(
    device: torch.device, problem: Problem, candidates: Sequence[Candidate]
) -> list[list[float]]:
    """Device times of candidates (us), launches alternated."""
    op, target = load(problem.op), device_target(device)
    values = op.inputs(problem, torch.Generator(device).manual_seed(0), "normal")
    calls: list[Callable[[], Any]] = []
    for candidate in candidates:
        impl = implementation(op.name, candidate.implementation)
        bound = bind(impl, impl.config(candidate.config, problem, target), values)
        calls.append(lambda bound=bound: bound(*values))
        calls[-1]()
    return timer(device).device_us(calls, PAIRS)


def llama(device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """All of the suite, one device, worker and compile server started within the time."""
    chosen = suite_named("llama3-8b").select()
    problems = [w.problem for _, workloads in chosen for w in workloads]
    start = time.perf_counter()
    ended = tune_many(
        problems, devices=[str(device.index)], budget_s=arguments.llama / len(problems)
    )
    seconds = time.perf_counter() - start
    failed = [str(one.job.problem) for one in ended if one.result is None or not one.result.plans]
    tried = sum(len(one.result.outcomes) for one in ended if one.result is not None)
    return {
        "ok": seconds <= LLAMA_S and not failed,
        "problems": len(problems),
        "seconds": seconds,
        "candidates": tried,
        "failed": failed,
    }


# ------------------------------------------------------------------- the decorators, a process each


def _operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    make = [
        torch.randn(SIZE, SIZE, generator=generator, device="cuda", dtype=torch.float16)
        for _ in range(3)
    ]
    torch.cuda.synchronize()
    return make[0], make[1], make[2]


def _example() -> Any:
    sys.path.insert(0, str(EXAMPLES))
    import autotune_matmul  # type: ignore[import]

    return autotune_matmul


def _list() -> list[triton.Config]:
    """As people write them: eighteen configs of that space."""
    return [
        triton.Config(
            {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages
        )
        for m, n, warps in ((64, 64, 4), (64, 128, 4), (128, 64, 4), (128, 128, 8), (128, 128, 4),
                            (128, 256, 8))
        for k, stages in ((32, 4), (64, 3), (64, 4))
    ]  # fmt: skip


def _run(decorate: Callable[[Any], Any]) -> dict[str, Any]:
    """One decorator's first call: wall clock and choice."""
    example = _example()
    a, b, c = _operands()
    start = time.perf_counter()
    kernel = decorate(example.matmul_kernel)
    kernel[example.grid](a, b, c, SIZE, SIZE, SIZE, SIZE, SIZE, SIZE)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    config = kernel.best_config
    known = {**config.kwargs, "num_warps": config.num_warps, "num_stages": config.num_stages}
    return {"seconds": seconds, "config": known}


def _with_triton(budget: float) -> dict[str, Any]:
    del budget
    return _run(triton.autotune(configs=_list(), key=["M", "N", "K"], cache_results=False))


def _with_ours(budget: float) -> dict[str, Any]:
    del budget
    return _run(gm.autotune(configs=_list(), key=["M", "N", "K"], reference=_truth))


def _with_space(budget: float) -> dict[str, Any]:
    space = _example().SPACE
    return _run(gm.autotune(space=space, key=["M", "N", "K"], reference=_truth, budget_s=budget))


def _truth(a_ptr: torch.Tensor, b_ptr: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"c_ptr": a_ptr @ b_ptr}


SIDES: dict[str, Callable[[float], dict[str, Any]]] = {
    "triton": _with_triton,
    "ours": _with_ours,
    "space": _with_space,
}


def _side(name: str, budget: float = 60.0) -> dict[str, Any]:
    """A side in a process of its own, with nothing in any cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = settings.child_environment(
            GRISTMILL_CACHE_DIR=folder, TRITON_CACHE_DIR=f"{folder}/triton"
        )
        command = [sys.executable, __file__, "--out", folder, "--side", name]
        done = subprocess.run(
            [*command, "--budget", str(budget)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-1500:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def autotune(device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """One list by both; a space of ten times as many by ours."""
    del arguments
    example = _example()
    found = {"triton": _side("triton"), "ours": _side("ours")}
    # The search's budget leaves the last race and the first compilation out.
    found["space"] = _side("space", 0.8 * found["triton"]["seconds"])
    a, b, c = _operands()
    sizes = (SIZE,) * 6

    def call(config: dict[str, Any]) -> Callable[[], Any]:
        return lambda: example.matmul_kernel[example.grid](a, b, c, *sizes, **config)

    calls = [call(one["config"]) for one in found.values()]
    for one in calls:
        one()
    samples = dict(zip(found, timer(device).device_us(calls, PAIRS), strict=True))
    for name, one in found.items():
        ratio = paired_ratio(samples["triton"], samples[name])
        one["us"], one["speedup"] = median(samples[name]), [ratio.value, ratio.low, ratio.high]
    valid = sum(1 for _ in example.SPACE.valid(_call_problem(example), device_target(device)))
    ours, space = found["ours"], found["space"]
    ok = (
        ours["seconds"] < found["triton"]["seconds"]
        and ours["speedup"][2] >= 1.0
        and space["seconds"] <= 1.05 * found["triton"]["seconds"]
        and space["speedup"][1] > 1.0
    )
    return {"ok": ok, "configs": len(_list()), "space_valid": valid, **found}


def _call_problem(example: Any) -> dict[str, int]:
    """What the example's rules ask of a call."""
    del example
    return {"M": SIZE, "N": SIZE, "K": SIZE}


PARTS: dict[str, Callable[[torch.device, argparse.Namespace], dict[str, Any]]] = {
    "cold": cold,
    "llama": llama,
    "autotune": autotune,
}

if __name__ == "__main__":
    sys.exit(main())
