"""The benchmark session of one GPU: tune and benchmark the suites, host overhead and start-up, JSON
and one table.

    python benchmarks/h200.py --out "$OUT" --deadline 540 --budget 10

Nothing that fails stops the rest, and what the deadline leaves out is named. Runs on a CPU too
(small workloads only), to try it out. Without `--cache` the plan store is a new one, so that
nothing measured before is used.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gristmill import settings
from gristmill.bench.overhead import host_times
from gristmill.bench.providers import default_names
from gristmill.bench.report import ceilings_text, print_compact
from gristmill.bench.results import Report
from gristmill.bench.stamp import Stamp
from gristmill.bench.startup import cached_get_op, import_ms
from gristmill.bench.suite import bench, fits_cpu
from gristmill.core.op import Op, Workload
from gristmill.core.problem import TensorSpec
from gristmill.core.registry import implementations, load, op_names
from gristmill.core.target import device_target
from gristmill.measure.ceilings import Ceilings
from gristmill.ops.tune import tune
from gristmill.selection.select import select

# Decode sizes, where the host decides; of each op a kernel that is one launch.
HOST_TIMES = (
    ("rms_norm", "llama3-8b-m16", "row"),
    ("silu_and_mul", "llama3-8b-m16", "tiles"),
    ("matmul", "llama3-8b-o-m16", "persistent_tma"),
)
# In their place on a CPU, where a call is not only a launch.
ON_A_CPU = {"rows": 16, "N": 64, "M": 16, "K": 64, "B": 1}
OVERHEAD = "overhead"


@dataclass
class Session:
    """What the parts share: arguments, device, ceilings, and the time that is left."""

    arguments: argparse.Namespace
    device: torch.device
    deadline: float
    ceilings: Ceilings
    lines: list[str]

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def say(self, text: str) -> None:
        """A line of progress, kept short: the device tool shows only the end of the output."""
        print(
            f"[{self.arguments.deadline - self.left_s:5.0f} s] {text}", file=sys.stderr, flush=True
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument(
        "--parts", nargs="+", default=[*op_names(), OVERHEAD], help="ops, and overhead; in turn"
    )
    parser.add_argument(
        "--workloads", nargs="+", default=["*"], help="names or patterns, of any op"
    )
    parser.add_argument(
        "--providers",
        nargs="+",
        help="default: gristmill copy torch aten inductor, and own kernels",
    )
    parser.add_argument(
        "--budget", type=float, default=10.0, help="tuning seconds per workload; 0: do not tune"
    )
    parser.add_argument("--trials", type=int, help="Triton candidates per workload")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument(
        "--deadline", type=float, default=540.0, help="seconds after which what is left is skipped"
    )
    parser.add_argument(
        "--cache", type=Path, help="plan store to use and fill; default: one that is dropped"
    )
    parser.add_argument(
        "--commit",
        help="what `python -m gristmill.bench.tree HEAD` prints, where git is not at hand",
    )
    parser.add_argument("--processes", type=int, default=10, help="for the start-up medians")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Run the parts in turn; the exit code says whether one of them failed as a whole."""
    arguments = parse()
    start = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    with tempfile.TemporaryDirectory(prefix="gristmill-") as scratch:
        cache = (arguments.cache or Path(scratch)).resolve()
        packs = Path(scratch) / "packs"  # nor what a pack has
        with settings.override(cache_dir=cache, pack_dir=packs, progress=False):
            deadline = start + arguments.deadline
            session = Session(arguments, device, deadline, Ceilings(device), [])
            failed = sum(not run(session, part) for part in arguments.parts)
    for line in session.lines:
        print(line)
    print(f"done in {time.monotonic() - start:.0f} s on {device}; JSON in {arguments.out}")
    return 1 if failed else 0


def run(session: Session, part: str) -> bool:
    """One part; whether it went through."""
    out = Console(width=132, highlight=False, force_terminal=False)
    try:
        if part == OVERHEAD:
            overhead(session)
        else:
            report = suite(session, load(part))
            out.print(f"{part}: {ceilings_text(report)}")
            print_compact(out, report)
    except Exception as error:  # the other parts may do better
        traceback.print_exc(limit=-3)
        session.lines.append(f"{part} FAILED: {type(error).__name__}: {error}"[:300])
        return False
    return True


def suite(session: Session, op: Op) -> Report:
    """Tune, then benchmark, every chosen workload of an op; writes `<op>.json` after each."""
    arguments = session.arguments
    workloads = chosen(op, arguments.workloads, session.device)
    providers = arguments.providers or [*default_names(op), *own(op, session.device)]
    tuning: dict[str, Any] = {}
    done: list[Report] = []
    skipped: list[str] = []
    for workload in workloads:
        if session.left_s <= 0:
            skipped.append(workload.name)
            continue
        session.say(f"{op.name} {workload.name}")
        if arguments.budget > 0:
            tuning[workload.name] = tuned(session, workload)
        done.append(
            bench(
                op,
                [workload],
                providers,
                device=session.device,
                pairs=arguments.pairs,
                seed=arguments.seed + 1,  # not the inputs that tuning saw
                commit=arguments.commit,
                ceilings=session.ceilings,
            )
        )
        merged(session, op, done, skipped, tuning).save(arguments.out / f"{op.name}.json")
    report = merged(session, op, done, skipped, tuning)
    report.save(arguments.out / f"{op.name}.json")
    return report


def merged(
    session: Session, op: Op, done: list[Report], skipped: list[str], tuning: dict[str, Any]
) -> Report:
    results = tuple(result for report in done for result in report.results)
    stamp = Stamp.of(session.device, session.arguments.commit)
    return Report(
        op.name,
        stamp,
        session.ceilings.to_json(),
        results,
        tuple(skipped),
        op.matrix,
        {"tuning": tuning},
    )


def tuned(session: Session, workload: Workload) -> dict[str, Any]:
    """What tuning a workload gave, in short; a failure is an entry too. A plan that the cache has
    is kept."""
    arguments, op = session.arguments, load(workload.problem.op)
    if not select(op, workload.problem, device_target(session.device), "eager").wants_tuning:
        return {"kept": True}
    args = workload.problem.args
    values = tuple(v.empty(session.device) if isinstance(v, TensorSpec) else v for _, v in args)
    budget_s = min(arguments.budget, max(session.left_s, 1.0))
    try:
        result = tune(
            workload.problem.op,
            values,
            budget_s=budget_s,
            trials=arguments.trials,
            seed=arguments.seed,
        )
    except Exception as error:
        session.say(f"tuning {workload.name} failed: {error}"[:300])
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    counts: dict[str, int] = {}
    failures: dict[str, str] = {}
    for candidate, outcome in result.outcomes.items():
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
        if outcome.status not in ("ok", "slow"):
            failures.setdefault(
                f"{candidate.implementation}: {outcome.status}",
                f"{candidate}: {outcome.reason}"[:300],
            )
    return {"seconds": result.seconds, "candidates": counts, "failures": failures}


def chosen(op: Op, patterns: list[str], device: torch.device) -> list[Workload]:
    found = [w for w in op.workloads if any(fnmatch.fnmatch(w.name, p) for p in patterns)]
    return found if device.type == "cuda" else [w for w in found if fits_cpu(op, w)]


def own(op: Op, device: torch.device) -> list[str]:
    """Our own kernels, where they can run at all."""
    return [
        i.name for i in implementations(op.name) if i.kind == "triton" and device.type == "cuda"
    ]


def overhead(session: Session) -> None:
    """Host time of calls, and what a new process pays; writes `overhead.json`."""
    session.say("overhead")
    data: dict[str, Any] = {"stamp": Stamp.of(session.device, session.arguments.commit).to_json()}
    data["host_times"] = []
    for name, workload, kernel in HOST_TIMES:
        op = load(name)
        problem = op.workload(workload).problem
        if session.device.type != "cuda":
            assert op.sized is not None
            problem, kernel = op.sized(ON_A_CPU, "float32"), "aten"  # noqa: PLW2901
        times = host_times(problem, kernel, session.device)
        data["host_times"].append(asdict(times))
        shown = ", ".join(f"{name} {us:.2f}" for name, us in times.times_us.items())
        session.lines.append(f"host us of {times.problem} by {times.kernel}: {shown}")
        ratios = ", ".join(
            f"{n} {v:.2f} ({low:.2f}-{high:.2f})" for n, (v, low, high) in times.ratios.items()
        )
        new = f"; a new token count {times.new_size_us:.0f} us"
        session.lines.append(f"  over F: {ratios or times.reason}{new}")
    processes = session.arguments.processes
    session.say(f"import in {processes} new processes")
    data["import_ms"] = import_ms(processes)
    session.lines.append(
        f"import gristmill, beyond torch: {data['import_ms']:.1f} ms, {processes} processes"
    )
    data["get_op"] = []
    for rows in (16384, 16) if session.device.type == "cuda" else (16,):
        if session.left_s <= 0:
            session.lines.append(f"get_op in a new process, {rows}x4096: skipped, out of time")
            continue
        session.say(f"get_op in new processes, {rows}x4096")
        got = cached_get_op(session.device, rows, 4096, min(processes, 3))
        data["get_op"].append(asdict(got))
        session.lines.append(
            f"get_op in a new process, rms_norm {rows}x4096: {got.get_op_ms:.1f} ms, first call "
            f"{got.first_call_ms:.2f} ms ({got.implementation}, {got.origin})"
        )
    (session.arguments.out / "overhead.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
