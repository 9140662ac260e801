"""`gristmill tune --record` with the compile server, the worker and kernels in the interpreter."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gristmill.cli.app import app
from gristmill.core.plan import Outcome
from gristmill.core.problem import Problem, TensorSpec
from gristmill.errors import ArtifactError, InvalidInputError, UnsupportedProblemError
from gristmill.tuning import recorder as recording_room
from gristmill.tuning.measurer import Measurer
from gristmill.tuning.recorded import load_recording
from gristmill.tuning.recorder import Recorder, unpaired

CPU = torch.device("cpu")
STAMP = {"versions": {"torch": torch.__version__}}
ROWS = ("rms_norm", "--shape", "x=4x64", "--shape", "weight=64", "--dtype", "float32")


def problem(rows: int = 4, dtype: str = "float32") -> Problem:
    x, weight = (TensorSpec.contiguous(shape, dtype) for shape in ((rows, 64), (64,)))
    return Problem("rms_norm", (("x", x), ("weight", weight), ("eps", 1e-6)))


def recorder(path: Path, **options) -> Recorder:
    return Recorder(problem(), CPU, path, STAMP, names=["row"], **options)


def command(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["tune", *arguments], env={"COLUMNS": "140"})
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_every_config_is_measured_and_the_leaders_in_turns(tmp_path):
    path = tmp_path / "row.jsonl.gz"
    done = recorder(path).run(300)
    kept = load_recording(path)
    assert done.complete
    assert not done.interrupted
    assert done.measured == kept.planned == kept.valid == len(kept.points) == 100
    assert kept.points.keys() == done.recording.points.keys()
    assert {point.outcome.status for point in kept.points.values()} <= {"ok", "slow"}
    times = kept.times()
    assert len(times) == 100
    assert all(point.outcome.repeats >= 1 for point in kept.points.values())
    best = min(times, key=lambda c: times[c])
    assert kept.points[best].pairs >= 10
    assert kept.points[kept.reference].ratio == 1.0
    assert not unpaired(kept)


def test_a_session_that_ends_early_is_gone_on_with_and_a_sample_is_a_prefix(tmp_path, monkeypatch):
    path = tmp_path / "row.jsonl.gz"
    first = recorder(path, points=3).run(300)
    assert (first.measured, first.recording.planned) == (3, 3)
    before = list(load_recording(path).points)
    again = recorder(path, points=3).run(300)
    assert again.measured == 0
    more = recorder(path, points=6).run(300)
    assert more.measured == 3
    assert list(load_recording(path).points)[:3] == before

    def interrupt(self, candidate, best_us):
        raise KeyboardInterrupt

    monkeypatch.setattr(Measurer, "measure", interrupt)
    stopped = recorder(path, points=20).run(300)
    assert stopped.interrupted
    assert not stopped.complete
    assert len(load_recording(path).points) == 6


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A file with a config, for tests that do not write it."""
    path = tmp_path_factory.mktemp("recorded") / "row.jsonl.gz"
    recorder(path, points=1).run(300)
    return path


@pytest.mark.parametrize("change", ["seed", "problem", "sources", "versions"])
def test_a_file_of_something_else_is_refused(recorded, change):
    asked = {
        "seed": (problem(), STAMP, ["row"], 1),
        "problem": (problem(rows=8), STAMP, ["row"], 0),
        "sources": (problem(), STAMP, ["multi_row"], 0),
        "versions": (problem(), {"versions": {"torch": "1.0"}}, ["row"], 0),
    }[change]
    one, stamp, names, seed = asked
    with pytest.raises(InvalidInputError, match=f"recorded with other {change}"):
        Recorder(one, CPU, recorded, stamp, names=names, seed=seed)


def test_what_cannot_be_recorded_is_said(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    with pytest.raises(InvalidInputError, match="multi_row, row"):
        Recorder(problem(), CPU, path, STAMP, names=["rows"])
    with pytest.raises(InvalidInputError, match="`points` is 0"):
        Recorder(problem(), CPU, path, STAMP, points=0)
    wide = TensorSpec.contiguous((1, 1 << 20), "float32")
    large = Problem("rms_norm", (("x", wide), ("weight", None), ("eps", 1e-6)))
    with pytest.raises(UnsupportedProblemError, match="no space to record"):
        Recorder(large, CPU, path, STAMP, names=["multi_row"])
    path.write_bytes(b"no gzip")
    with pytest.raises(ArtifactError, match="cannot be read"):
        recorder(path)


def test_a_compile_that_is_lost_is_asked_for_once_more(tmp_path, monkeypatch):
    """The compile server's end fails all that it was asked; none of that is a config's outcome."""
    lost = []

    class Loses(recording_room.CompilePool):
        def collect(self):
            candidate, outcome = super().collect()
            if candidate not in lost:
                lost.append(candidate)
                return candidate, Outcome("crash", "the compile server has ended")
            return candidate, outcome

    monkeypatch.setattr(recording_room, "CompilePool", Loses)
    done = recorder(tmp_path / "x.jsonl.gz", points=4).run(300)
    assert len(lost) == 4
    assert all(point.outcome.status in ("ok", "slow") for point in done.recording.points.values())


def test_the_command_records_and_says_what(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    options = (*ROWS, "--device", "cpu", "--record", str(path), "--implementation", "row")
    text = command(*options, "--points", "2", "--budget", "200", "--commit", "abc")
    assert "2 of 2 recorded" in text
    assert "complete" in text
    facts = json.loads(command(*options, "--points", "3", "--json"))
    assert (facts["recorded"], facts["measured_now"], facts["complete"]) == (3, 1, True)
    assert facts["right"] == 3
    assert load_recording(path).stamp["workload"]


def test_a_time_limit_s_signal_keeps_what_was_measured(tmp_path, monkeypatch):
    path, measure, calls = tmp_path / "rows.jsonl.gz", Measurer.measure, []

    def third_is_the_last(self, candidate, best_us):
        calls.append(candidate)
        if len(set(calls)) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(self, candidate, best_us)

    monkeypatch.setattr(Measurer, "measure", third_is_the_last)
    text = command(*ROWS, "--device", "cpu", "--record", str(path), code=130)
    assert "not complete" in text
    assert list(load_recording(path).points) == list(dict.fromkeys(calls))[:2]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_options_that_do_not_go_together(tmp_path):
    path = str(tmp_path / "x.jsonl.gz")
    assert "without `--record`" in command(*ROWS, "--points", "3", code=2)
    assert "`--trials`" in command(*ROWS, "--record", path, "--trials", "3", code=2)
    several = ("rms_norm", "-w", "llama3-8b-*", "--record", path)
    assert "5 problems" in command(*several, code=2)
