"""The plan store under everything at once, with real processes: tuners that are killed at any
moment, readers, merges, clocks that jump, a disk that fills up; as one file and as shards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from store_cases import FORKS, fork, shard_files
from tuner_cases import Notebook, Number, NumbersRun, best, kept, tune

import gristmill as gm
from gristmill import settings
from gristmill.cache import shard
from gristmill.cache.database import FILE_NAME
from gristmill.cache.faults import CacheWarning
from gristmill.cache.shards import FOLDER_NAME
from gristmill.cache.store import PlanStore, store

pytestmark = FORKS

KEYS = (1, 2)
NUMBERS = range(12)
ABLE = (Number(numbers=NUMBERS),)
TRIAL_S = 0.004
YEAR_S = 365 * 86_400.0


def tune_noted(folder, log, locks, n):
    """Tune a key if its lease is free, and note when that began and ended."""
    with settings.override(lock_dir=locks / str(os.getpid())):
        run = NumbersRun(folder, Notebook(log / f"trials-{n}"), ABLE, n, TRIAL_S)
        with run.store.lease(run.lease_key) as mine:
            if mine:
                # Where nothing can be written everybody is on its own.
                how = "alone" if run.store._fault else "in"
                Notebook(log / f"turns-{n}").note(f"{how} {os.getpid()}")
                # What the tuner before kept is known to the run that has its turn.
                run = NumbersRun(folder, Notebook(log / f"trials-{n}"), ABLE, n, TRIAL_S)
                run.run()
                Notebook(log / f"turns-{n}").note(f"out {os.getpid()}")


def only_of_a_full_disk():
    """Any other warning is an error."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", r"plan store .* \(full\)", CacheWarning)


class Fleet(RuleBasedStateMachine):
    """Processes on one store. What any reader has seen is there ever after; a key has one tuner at
    a time; a kill costs at most the trial in flight; nothing is damaged, nobody is troubled."""

    mode = "database"

    @initialize()
    def begin(self):
        self.base = Path(tempfile.mkdtemp(prefix="gristmill-stress-"))
        self.folder = self.base / "disk"
        self.folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "gristmill-test", self.folder]
        self.mounted = not subprocess.run(command, capture_output=True, check=False).returncode
        self.log = self.base
        self.tuners: dict[int, int] = {}
        self.seen = {n: set() for n in KEYS}
        self.kills = dict.fromkeys(KEYS, 0)
        self.full = self.ever_full = False
        self.reader = PlanStore(self.folder)

    @precondition(lambda self: len(self.tuners) < 4)
    @rule(n=st.sampled_from(KEYS), jump_s=st.sampled_from((0.0, 0.0, 7200.0, -7200.0, -YEAR_S)))
    def start_tuner(self, n, jump_s):
        def child():
            if jump_s:
                real = time.time
                time.time = lambda: real() + jump_s
            only_of_a_full_disk()
            tune_noted(self.folder, self.log, self.base / "locks", n)

        self.tuners[fork(child)] = n

    @rule(wait_s=st.floats(0.0, 0.03))
    def let_it_go_on(self, wait_s):
        time.sleep(wait_s)

    @precondition(lambda self: self.tuners)
    @rule(data=st.data())
    def kill_a_tuner(self, data):
        pid = data.draw(st.sampled_from(sorted(self.tuners)))
        n = self.tuners.pop(pid)
        Notebook(self.log / f"turns-{n}").note(f"kill {pid}")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.kills[n] += 1

    @rule()
    def merge(self):
        with self.patience():
            place = PlanStore(self.folder)
            if self.mode == "shards":
                place._try(place._database.merge)
            else:
                place._try(lambda: place._database.remove(lambda *row: False))

    @precondition(lambda self: self.mounted and not self.full)
    @rule()
    def fill_the_disk(self):
        self.full = self.ever_full = True
        ballast = self.folder / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass

    @precondition(lambda self: self.full)
    @rule()
    def make_room(self):
        (self.folder / "ballast").unlink()
        self.full = False

    @contextlib.contextmanager
    def patience(self):
        with warnings.catch_warnings():
            only_of_a_full_disk()
            yield

    @invariant()
    def what_was_seen_is_there(self):
        with self.patience():
            for n in KEYS:
                now = set(kept(self.folder, n))
                assert self.seen[n] <= now
                if not self.ever_full:
                    done = set(Notebook(self.log / f"trials-{n}").lines()[:-1])
                    running = sum(m == n for m in self.tuners.values())
                    assert len(done - set(kept(self.folder, n))) <= self.kills[n] + running
                self.seen[n] = now
            self.reader.forget()
            self.reader.plans()

    def teardown(self):
        if not hasattr(self, "base"):
            return
        try:
            if self.full:
                self.make_room()
            for pid in self.tuners:
                assert os.waitpid(pid, 0)[1] == 0
            self.check_turns()
            self.check_files()
            self.check_the_end()
        finally:
            for pid in self.tuners:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
            if self.mounted:
                subprocess.run(["umount", "-l", self.folder], check=True)
            shutil.rmtree(self.base)

    def check_turns(self):
        """One tuner a key; who could not write its lease was on its own, and said so."""
        for n in KEYS:
            inside = set()
            for line in Notebook(self.log / f"turns-{n}").lines():
                what, pid = line.split()
                if what == "in":
                    assert not inside
                    inside.add(pid)
                elif what in ("out", "kill"):
                    inside.discard(pid)

    def check_files(self):
        assert not list(self.folder.glob("*.corrupt*"))
        if self.mode == "shards":
            for name in shard_files(self.folder, "*.jsonl"):
                assert not shard.read(self.folder / FOLDER_NAME / name).damage
        elif (self.folder / FILE_NAME).exists():
            with contextlib.closing(sqlite3.connect(self.folder / FILE_NAME)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    def check_the_end(self):
        """Whoever tunes now goes on from what there is, and all is there."""
        for n in KEYS:
            notebook = Notebook(self.log / f"trials-{n}")
            result = tune(self.folder, notebook, self.base / "locks", able=ABLE, n=n)
            assert result is not None  # no dead process holds the lease
            assert result.plans["graph"].candidate == best(NUMBERS)
            assert len(kept(self.folder, n)) == len(NUMBERS)
            if not self.ever_full:
                assert sum(notebook.counts().values()) <= len(NUMBERS) + self.kills[n]


@pytest.mark.parametrize("mode", ["database", "shards"])
def test_a_fleet_of_processes_under_kills_full_disks_and_jumping_clocks(mode):
    machine = type("Fleet", (Fleet,), {"mode": mode})
    limits = hypothesis_settings(
        max_examples=12,
        stateful_step_count=14,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),  # processes race: no failure shrinks
        suppress_health_check=list(HealthCheck),
    )
    with settings.override(store=mode):
        run_state_machine_as_test(machine, settings=limits)


@pytest.mark.parametrize("mode", ["database", "shards"])
def test_eight_processes_tune_and_read_at_once_and_nothing_is_lost_or_done_twice(tmp_path, mode):
    """Each asks for every key until all have plans; whoever has not its turn reads meanwhile."""
    keys = range(1, 5)
    gate, opened = os.pipe()

    def member(rank):
        os.close(opened)
        os.read(gate, 1)
        warnings.simplefilter("error")
        deadline = time.monotonic() + 60
        left = set(keys)
        while left and time.monotonic() < deadline:
            for n in sorted(left, key=lambda n: (n + rank) % 4):
                tune_noted(tmp_path / "store", tmp_path, tmp_path / "locks", n)
                plans = [p for p in PlanStore(tmp_path / "store").plans() if p.bucket == f"n={n}|"]
                assert len(plans) in (0, 1, 2)
                if len(plans) == 2:
                    assert {p.candidate for p in plans} == {best(NUMBERS)}
                    left.discard(n)
        assert not left

    with settings.override(store=mode):
        members = [fork(lambda rank=rank: member(rank)) for rank in range(8)]
        os.close(gate)
        os.close(opened)
        assert [os.waitpid(pid, 0)[1] for pid in members] == [0] * 8
        for n in keys:
            assert sorted(kept(tmp_path / "store", n)) == sorted(
                Notebook(tmp_path / f"trials-{n}").lines()
            )
            assert len(kept(tmp_path / "store", n)) == len(NUMBERS)
            turns = Notebook(tmp_path / f"turns-{n}").lines()
            assert [t.split()[0] for t in turns] == ["in", "out"] * (len(turns) // 2)
            for came, went in zip(turns[::2], turns[1::2], strict=True):
                assert came.split()[1] == went.split()[1]


def test_while_another_process_tunes_a_problem_others_use_what_there_is(fresh_store):
    import torch

    values = (torch.ones(8, 64),)
    bound = gm.get_op("rms_norm", values, tune="never")
    key = f"rms_norm|{bound.plan.bucket}|{bound.plan.target}"
    told, tell = os.pipe()

    def other():
        with store().lease(key):
            os.write(tell, b"x")
            time.sleep(60)

    holder = fork(other)
    assert os.read(told, 1)
    began = time.monotonic()
    meanwhile = gm.get_op("rms_norm", values)
    assert time.monotonic() - began < 5
    assert meanwhile.plan.candidate == bound.plan.candidate
    assert "another process is tuning this very problem: ask again later" in meanwhile.plan.reason
    with pytest.raises(gm.TuningError, match="another process is tuning this very problem"):
        gm.tune("rms_norm", values, budget_s=1.0)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with store().lease(key) as mine:
        assert mine
