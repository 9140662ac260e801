"""Under what conditions was it measured? Noise and drift of an anchor, what the device says of
itself, and what follows for the choice. All of it from made-up samples."""

from __future__ import annotations

import io
import json
import math
import os
import random
import sys
import time
import types

import pytest
import torch
from rich.console import Console
from test_search_runs import Run, start
from tuner_cases import Notebook, NumbersRun

import gristmill as gm
from gristmill import settings
from gristmill.bench.results import Report
from gristmill.bench.suite import bench
from gristmill.cache.evidence import forget_runs, kept_run
from gristmill.cli.explain import print_conditions
from gristmill.core.op import Workload
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.registry import load
from gristmill.measure import conditions as module
from gristmill.measure import sensors
from gristmill.measure.conditions import (
    DRIFTING,
    FEWEST,
    NOISY,
    SURE,
    WIDEST,
    Conditions,
    Watch,
    spread,
)
from gristmill.measure.sensors import Reading, Sensor, reading_of, strangers
from gristmill.tuning.choose import choose, tied_with_fastest
from gristmill.tuning.measurer import Measurer

CPU = torch.device("cpu")
NOISY_MACHINE = Conditions(anchors=40, noise=0.08, drift=0.0)


def anchors(count, noise=0.0, drift=0.0, seed=0):
    """Times of an anchor of 10 us, uniform within +-`noise`, longer by `drift` at the end."""
    draw = random.Random(seed)
    return [
        10.0 * (1 + draw.uniform(-noise, noise) + drift * i / (count - 1)) for i in range(count)
    ]


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("drift", [-0.1, 0.0, 0.3])
def test_noise_and_drift_are_told_apart(noise, drift):
    found, moved = spread(anchors(300, noise, drift))
    middle = 1 + drift / 2
    assert found == pytest.approx(0.8 * noise / middle, abs=0.02)  # the middle 80%
    sure = SURE * noise / math.sqrt(300)
    assert moved == pytest.approx(drift / middle, abs=0.01 + sure)


def test_a_few_outliers_are_neither_noise_nor_drift():
    times = anchors(100, 0.01)
    times[-5:] = [80.0] * 5
    noise, drift = spread(times)
    assert noise < NOISY
    assert abs(drift) < DRIFTING


def test_too_few_anchors_say_nothing():
    assert spread(anchors(FEWEST - 1, 0.5)) == (None, None)
    assert spread([]) == (None, None)
    assert Conditions().warnings == ()
    assert str(Conditions()) == ""


def test_a_noisy_machine_is_said_with_its_figures_and_widens_ties():
    loud = Conditions.of(anchors(60, 0.09), [])
    assert loud.noisy
    assert loud.slack == loud.noise
    assert [w.split(":")[0] for w in loud.warnings] == ["the machine is noisy"]
    assert Conditions.of(anchors(60, 0.9), []).slack == WIDEST
    quiet = Conditions.of(anchors(60, 0.01), [])
    assert (quiet.slack, quiet.warnings) == (0.0, ())


def test_a_drift_is_said_with_its_direction():
    (hotter,) = Conditions.of(anchors(60, 0.01, 0.2), []).warnings
    assert "longer at the end" in hotter
    (cooler,) = Conditions.of(anchors(60, 0.01, -0.2), []).warnings
    assert "less long at the end" in cooler
    for seed in range(20):  # noise alone is no drift
        assert not Conditions.of(anchors(30, 0.3, seed=seed), []).drifting


def test_clocks_that_are_held_down_and_strangers_are_said():
    seen = Conditions.of(
        [],
        [
            Reading(1980, 2619, 41, 90.0),
            Reading(1410, 2619, 77, 690.5, ("power cap",), ("77 train",)),
        ],
    )
    assert seen.sm_mhz == (1410, 1980)
    assert seen.power_w == (90.0, 690.5)
    held, others = seen.warnings
    assert held == "the clocks (1,410 to 1,980 MHz) were held down: power cap"
    assert others == "other processes are on the device: 77 train"
    assert str(seen) == "1,410 to 1,980 MHz; 2,619 MHz memory; 41 to 77 C; 90 to 690 W"
    assert Conditions.from_json(json.loads(json.dumps(seen.to_json()))) == seen
    assert json.loads(json.dumps(seen.to_json())) == seen.to_json()


def test_what_nvidia_smi_prints_is_read():
    mine = f"{os.getpid()}, /usr/bin/python3\n4711, /opt/train\n{os.getppid()}, pytest\n"
    reading = reading_of("1980, 2619, 34, 118.42, 0x0000000000000024\n", mine)
    held = ("power cap", "temperature")
    assert reading == Reading(1980.0, 2619.0, 34.0, 118.42, held, ("4711 train",))
    partial = reading_of(
        "1980, [N/A], 34, [Not Supported], [N/A]\n", "No running processes found\n"
    )
    assert partial == Reading(1980.0, None, 34.0, None)
    assert reading_of("No devices were found\n", "") is None
    # In a container the driver's numbers are not ours.
    assert strangers({1: "init", 4711: "train"}) == ()


def test_what_nvml_says_is_read(monkeypatch):
    class NVMLError(Exception):
        pass

    def no_power(handle):
        raise NVMLError

    process = types.SimpleNamespace
    fake = types.SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetClockInfo=lambda handle, which: {1: 1980, 2: 2619}[which],
        nvmlDeviceGetTemperature=lambda handle, which: 50,
        nvmlDeviceGetPowerUsage=no_power,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x41,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [
            process(pid=os.getpid()),
            process(pid=1),
        ],
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    reading = Sensor(sensors._nvml("GPU-0")).read()
    assert reading is not None
    assert (reading.sm_mhz, reading.memory_mhz, reading.temperature_c) == (1980, 2619, 50)
    assert reading.power_w is None
    assert reading.held_by == ("temperature (hardware)",)
    assert [other.split()[0] for other in reading.others] == ["1"]


@pytest.mark.parametrize("fault", ["raises", "is slow", "says nothing"])
def test_a_sensor_that_fails_or_is_slow_is_left_alone(fault, monkeypatch):
    monkeypatch.setattr(sensors, "SLOW_S", 0.01)
    looks = []

    def look():
        looks.append(1)
        if fault == "raises":
            raise OSError("gone")
        if fault == "is slow":
            time.sleep(0.02)
            return Reading(1980.0)
        return None

    one = Sensor(look)
    assert one.read() == (Reading(1980.0) if fault == "is slow" else None)
    assert one.read() is None
    assert len(looks) == 1


def test_a_cpu_has_no_sensor_and_an_anchor():
    assert sensors.sensor(CPU).read() is None
    watch = Watch(CPU)
    calls = []

    class Timer:
        prepare = staticmethod(lambda: calls.append("prepare"))

        def device_us(self, some, repeats, host_us=50.0):
            assert self.prepare is None  # of the candidates, not of the anchor
            some[0]()
            return [[3.0, 1.0, 2.0]]

    timer = Timer()
    watch.anchor(timer)
    assert timer.prepare is not None
    assert watch.drain() == {"anchors_us": [2.0], "readings": []}
    assert watch.drain()["anchors_us"] == []
    assert not calls


def entry(name, us, registers=0):
    outcome = Outcome("ok", device_us=us, host_us=1.0, registers=registers)
    return Candidate(name), outcome, {"device": [us] * 50}


def test_noise_makes_a_tie_of_what_a_quiet_machine_tells_apart(monkeypatch):
    entries = [entry("lean", 104.0, 32), entry("fast", 100.0, 255), entry("late", 120.0, 16)]
    kind = {"kind_of": lambda c: "triton"}
    assert len(tied_with_fastest(entries, "graph")) == 1
    assert choose("any", entries, "graph", **kind)[0] == Candidate("fast")
    tied = tied_with_fastest(entries, "graph", 0.08)
    assert [c.implementation for c, _, _ in tied] == ["fast", "lean"]
    # what keeps the device longer than "never slower" allows still goes last among them
    assert choose("any", entries, "graph", slack=0.08, **kind)[0] == Candidate("fast")
    near = [entry("lean", 101.5, 32), *entries[1:]]
    assert choose("any", near, "graph", **kind)[0] == Candidate("fast")
    assert choose("any", near, "graph", slack=0.08, **kind)[0] == Candidate("lean")


class Heard:
    """An observer that writes down what it was warned of."""

    def __init__(self):
        self.warnings = []

    def started(self, problem, seconds, trials): ...

    def told(self, candidate, outcome, elapsed_s): ...

    def racing(self, count): ...

    def ended(self, summary): ...

    def warned(self, text):
        self.warnings.append(text)


class OnNoisyMachine(Run):
    """A run whose device is noisy."""

    def make_measurer(self, seed):
        made = super().make_measurer(seed)
        made.seen = NOISY_MACHINE
        return made


def test_a_run_on_a_noisy_machine_says_so_once_and_keeps_it_as_evidence(fresh_store):
    run = start("exhaustive", OnNoisyMachine)
    run.observer = heard = Heard()
    result = run.run()
    assert heard.warnings == list(NOISY_MACHINE.warnings) == list(result.conditions.warnings)
    assert "a noisy machine: within 8% is a tie" in result.plans["eager"].reason
    key = (run.op.name, run.bucket.key, run.target.key)
    kept = kept_run(fresh_store.folder, key)
    assert Conditions.from_json(kept["conditions"]) == NOISY_MACHINE
    explained = gm.explain("rms_norm", (torch.ones(4, 8), torch.ones(8), 1e-6))
    assert explained.conditions == NOISY_MACHINE
    assert "the machine is noisy" in str(explained)
    assert explained.to_json()["conditions"]["noise"] == 0.08
    out = io.StringIO()
    print_conditions(Console(file=out, width=200), explained.conditions)
    assert "noise 8.0%" in out.getvalue()
    forget_runs(fresh_store.folder)
    assert kept_run(fresh_store.folder, key) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": ["another"]}', '{"conditions": 3}'])
def test_damaged_evidence_is_no_evidence(fresh_store, damage):
    run = start("exhaustive", OnNoisyMachine)
    run.run()
    (path,) = (fresh_store.folder / "runs").glob("*.json")
    kept = json.loads(path.read_text())
    path.write_text(damage if "conditions" not in damage else json.dumps({**kept, "conditions": 3}))
    assert gm.explain("rms_norm", (torch.ones(4, 8), torch.ones(8), 1e-6)).conditions is None


def test_a_folder_that_cannot_be_written_loses_evidence_and_no_plan(tmp_path):
    (tmp_path / "runs").write_text("a file in the folder's place")
    with settings.override(lock_dir=tmp_path / "locks"):
        run = NumbersRun(tmp_path, Notebook(tmp_path / "notes"))
        assert run.run().plans


def test_a_worker_reports_its_anchors_with_every_trial(faulty, monkeypatch):
    problem = load("twice").problem((torch.ones(64, 64),))
    with Measurer(problem, CPU) as measurer:
        for _ in range(3):
            assert measurer.measure(Candidate("right"), None).ok
        assert measurer.conditions().anchors == 3
        measurer.race([Candidate("right")])
    assert measurer.conditions().anchors >= FEWEST


def test_a_benchmark_has_its_conditions_and_reads_reports_without(monkeypatch):
    monkeypatch.setattr(module, "NOISY", -1.0)  # every machine is noisy then
    op = load("rms_norm")
    problem = op.problem((torch.ones(4, 8), torch.ones(8), 1e-6))
    report = bench(op, [Workload("w", problem)], ["aten", "torch"], device=CPU, pairs=4)
    (result,) = report.results
    assert result.conditions["anchors"] >= FEWEST
    assert any("noisy" in warning for warning in result.conditions["warnings"])
    data = json.loads(json.dumps(report.to_json()))
    assert Report.from_json(data).results[0].conditions == json.loads(json.dumps(result.conditions))
    del data["results"][0]["conditions"]
    assert Report.from_json(data).results[0].conditions is None
