"""Every check that this machine can run, in order; the last line is a total like pytest's.

python tools/test.py                           # what `make test` runs
python tools/test.py --only gpu --json benchmarks/results/H200/tests.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEVICES = """
import torch
for index in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_name(index))
"""
TREE = """
import sys
sys.path.insert(0, "src")
from gristmill.bench.tree import of_folder
print(of_folder())
"""
NEEDS = {"gpu": 1, "multi_gpu": 2}  # devices
MAX_WORKERS = 8  # processes that run tests; each of them starts some of its own


@dataclass
class Result:
    """What one step gave; a lint is one test."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0


def run(command: Sequence[str], **variables: str) -> int:
    """The exit status of a command, run in the repository with its sources importable."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lint(*command: str) -> Callable[[], Result]:
    """A step that passes or fails as a whole."""

    def step() -> Result:
        status = run(command)
        return Result(passed=int(status == 0), failed=int(status != 0))

    return step


def pytest(folder: str, **variables: str) -> Callable[[], Result]:
    """A step that runs one folder of tests in processes of its own: with xdist, one a core for what
    needs no device (several that share a GPU are for whoever asks with `PYTEST_ADDOPTS`)."""

    def step() -> Result:
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", folder, f"--junitxml={report}"]
            if Path(folder).name not in NEEDS and importlib.util.find_spec("xdist"):
                command += [f"-n{min(cores(), MAX_WORKERS)}", "--dist=worksteal"]
            status = run(command, HYPOTHESIS_PROFILE="ci", **variables)
            result = counts(report) if report.exists() else Result()
        if status != 0 and result.failed == 0:  # it did not get as far as a test
            result.failed = 1
        return result

    return step


def counts(report: Path) -> Result:
    """The totals of a JUnit report (errors count as failures)."""
    suites = ET.parse(report).getroot().iter("testsuite")  # noqa: S314 - pytest wrote it just now
    total = Result()
    for suite in suites:
        number = {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
        total.failed += number["failures"] + number["errors"]
        total.skipped += number["skipped"]
        total.passed += number["tests"] - sum(number[k] for k in ("failures", "errors", "skipped"))
    return total


def lint_imports() -> str:
    """Where import-linter's command lies: beside this Python, or on the PATH."""
    beside = Path(sys.executable).with_name("lint-imports")
    return str(beside) if beside.exists() else shutil.which("lint-imports") or "lint-imports"


STEPS = {
    "ruff": lint(sys.executable, "-m", "ruff", "check", "--no-cache", "."),
    "format": lint(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", "."),
    "pyright": lint(sys.executable, "-m", "pyright"),
    "imports": lint(lint_imports()),
    "cpu": pytest("tests/cpu"),
    "interpret": pytest("tests/interpret", TRITON_INTERPRET="1"),
    "gpu": pytest("tests/gpu"),
    "multi_gpu": pytest("tests/multi_gpu"),
}


def output(*command: str) -> str:
    """What a command prints; empty where it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def record(path: Path, results: dict[str, Result], total: Result, device: str, commit: str) -> None:
    """Write the counts, and what they were counted on, as JSON.

    `tree` is the digest of the sources; `dirty`, whether they differ from the commit's (`null`
    where neither git nor `commit`, `COMMIT:DIGEST`, tells). A stated commit goes before what git
    knows here.
    """
    stated, _, clean = commit.partition(":")
    found = "" if stated else output("git", "rev-parse", "HEAD")
    changed = output("git", "status", "--porcelain").splitlines() if found else []
    tree = output(sys.executable, "-c", TREE)
    data = {
        "commit": found or stated,
        "dirty": bool(changed) if found else tree != clean if clean else None,
        "changed_files": [line.split(maxsplit=1)[1] for line in changed],
        "tree": tree,
        "device": device,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "torch": version("torch"),
        "triton": version("triton"),
        "total": asdict(total),
        "steps": {name: asdict(result) for name, result in results.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=STEPS, help="run these steps alone")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the counts here")
    parser.add_argument(
        "--commit",
        default="",
        help="for --json, where there is no git: what `python -m gristmill.bench.tree HEAD` prints",
    )
    options = parser.parse_args()
    devices = output(sys.executable, "-c", DEVICES).splitlines()
    names = options.only or [name for name in STEPS if len(devices) >= NEEDS.get(name, 0)]
    results: dict[str, Result] = {}
    for name in names:
        print(f"--- {name}", flush=True)
        start = time.monotonic()
        results[name] = STEPS[name]()
        results[name].seconds = round(time.monotonic() - start, 1)
    total = Result()
    print("---")
    for name, result in results.items():
        total = Result(
            *(getattr(total, k) + getattr(result, k) for k in ("passed", "failed", "skipped")),
            seconds=round(total.seconds + result.seconds, 1),
        )
        verdict = "FAILED" if result.failed else "ok"
        print(f"{name:<10} {verdict:<7} {result.passed:>5} passed {result.seconds:>7.1f} s")
    if options.json:
        record(options.json, results, total, devices[0] if devices else "cpu", options.commit)
    print(
        f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped "
        f"in {total.seconds:.1f} s"
    )
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
