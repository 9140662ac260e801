"""A space recorded on a GPU: real kernels compiled ahead, checked, timed, and those near the best
timed in turns."""

from __future__ import annotations

import pytest

from gristmill.core.registry import load
from gristmill.tuning.recorded import load_recording
from gristmill.tuning.recorder import Recorder
from gristmill.tuning.replay import Replay


@pytest.mark.parametrize(
    ("op", "workload", "name"),
    [("rms_norm", "llama3-8b-m512", "row"), ("matmul", "square-1024", "persistent_tma")],
)
def test_a_space_is_recorded_and_replayed(cuda, tmp_path, op, workload, name):
    path, problem = tmp_path / "space.jsonl.gz", load(op).workload(workload).problem
    done = Recorder(problem, cuda, path, {"versions": {}}, names=[name], points=24).run(240)
    assert done.complete
    kept = load_recording(path)
    assert len(kept.points) == 24
    times = kept.times()
    assert len(times) >= 12
    best = min(times, key=lambda c: times[c])
    assert kept.points[best].pairs >= 10
    assert kept.points[best].outcome.registers
    assert kept.points[best].outcome.host_us is None
    assert Replay(kept).search("random", 0, 24).shares[-1] == 1.0
