"""A pytest plug-in: what each test costs in CPU seconds, its child processes included.

PYTHONPATH=tools python -m pytest -p test_costs --costs=/tmp/costs tests/cpu/test_hot.py
python tools/test_costs.py /tmp/costs              # by file; --tests: by test too

Wall-clock says little on a machine that others share. A process (of xdist, or the only one) writes
a file of its own into the folder: a line a test, `[node id, CPU s, wall s]`. The first test of a
process carries the imports and the collection. What a process costs that outlives the test that
started it is charged to the tests during which it works; what is orphaned (Ray's) is missing.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TICK = 1 / os.sysconf("SC_CLK_TCK")


def processes() -> Iterator[tuple[int, int, float]]:
    """Every process's id, its parent's, and the CPU seconds of it and of its reaped children."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        yield int(path.parent.name), int(fields[1]), TICK * sum(map(int, fields[11:15]))


def spent() -> float:
    """The CPU seconds of this process and of all that descend from it."""
    parents, seconds = {}, {}
    for pid, parent, cpu in processes():
        parents[pid], seconds[pid] = parent, cpu
    total, me = 0.0, os.getpid()
    for pid, cpu in seconds.items():
        above = pid
        while above not in (me, 0):
            above = parents.get(above, 0)
        total += cpu if above == me else 0.0
    return total


class Costs:
    """Writes a line after each test."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.cpu, self.wall = path, 0.0, time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        cpu, wall = spent(), time.monotonic()
        with self.path.open("a") as file:
            file.write(json.dumps([nodeid, cpu - self.cpu, wall - self.wall]) + "\n")
        self.cpu, self.wall = cpu, wall


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--costs", type=Path, help="a folder for what each test costs")


def pytest_configure(config: Any) -> None:
    folder = config.getoption("--costs")
    if folder and not config.getoption("numprocesses", None):  # xdist's workers run the tests
        config.pluginmanager.register(Costs(folder / f"{os.getpid()}.jsonl"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tests", action="store_true", help="the dearest tests too")
    options = parser.parse_args()
    lines = [json.loads(x) for f in options.folder.glob("*.jsonl") for x in f.open()]
    files, functions = collections.defaultdict(list), collections.defaultdict(list)
    for node, cpu, wall in lines:
        files[node.partition("::")[0]].append((cpu, wall))
        functions[node.partition("[")[0]].append((cpu, wall))
    for groups, count in ((functions, 60 if options.tests else 0), (files, 200)):
        ordered = sorted(groups.items(), key=lambda kv: -sum(c for c, _ in kv[1]))
        for name, costs in ordered[:count]:
            cpu, wall = (sum(x) for x in zip(*costs, strict=True))
            print(f"{cpu:8.1f} cpu {wall:8.1f} wall {len(costs):5} tests  {name}")
        print("---")
    print(f"{sum(c for _, c, _ in lines):.1f} CPU s, {len(lines)} tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
