"""Idle tuning on a GPU: a foreground that calls now and then keeps its latency, and gets a plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "idle.py"


def test_calls_are_as_fast_while_their_problem_is_tuned_in_the_background(cuda, tmp_path):
    out = tmp_path / "idle.json"
    environment = {**os.environ, "GRISTMILL_CACHE_DIR": str(tmp_path / "cache")}
    command = [
        sys.executable,
        str(SCRIPT),
        "--out",
        str(out),
        "--device",
        "cuda",
        "--seconds",
        "90",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert told["plan"]["origin"] == "tuned"
    assert told["during"]["calls"] > 100
    assert told["calls_beside_a_kept_trial"] is not None
    assert told["calls_beside_a_kept_trial"] <= 0.01 * told["during"]["calls"]
    assert told["during"]["p50_us"] < 1.1 * told["before"]["p50_us"] + 2.0
    assert told["during"]["p99_us"] < 2.0 * told["before"]["p99_us"] + 20.0
