"""Ranks of one job agree on a plan: real processes over gloo, of which some ask other things, raise
or die."""

from __future__ import annotations

import os
import pickle
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from store_cases import FORKS, fork

import gristmill as gm
from gristmill import settings
from gristmill.cache.lockfile import read_lock
from gristmill.cache.store import store
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.provenance import provenance
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.ops import agree, get_op
from gristmill.selection.select import select
from gristmill.tuning.budget import TuningInterrupted, TuningResult
from pack_cases import TARGET, beside, chosen, kept, save, ship

pytestmark = FORKS

SHAPE = (8, 64)


class Job:
    """Forks ranks, each with a store of its own as on a machine of its own, unless told otherwise.
    What a rank returns or raises comes back."""

    def __init__(self, folder):
        self.folder = folder
        self.jobs = 0

    def run(self, size, work, *, shared=False):
        self.jobs += 1
        pipes = [os.pipe() for _ in range(size)]
        ended, end = os.pipe()  # no rank ends before all have said what they have

        def rank_of(rank):
            os.close(end)
            for other, (_, write) in enumerate(pipes):
                if other != rank:
                    os.close(write)
            result = self._rank(rank, size, work, shared)
            with os.fdopen(pipes[rank][1], "wb") as pipe:
                pipe.write(pickle.dumps(result))
            os.read(ended, 1)

        ranks = [fork(lambda rank=rank: rank_of(rank)) for rank in range(size)]
        results = []
        for read, write in pipes:
            os.close(write)
            with os.fdopen(read, "rb") as pipe:
                data = pipe.read()
            results.append(pickle.loads(data) if data else None)
        os.close(end)
        os.close(ended)
        for pid in ranks:
            os.waitpid(pid, 0)
        return results

    def _rank(self, rank, size, work, shared):
        torch.set_num_threads(1)
        place = self.folder / ("store" if shared else f"store-{rank}")
        meeting = (self.folder / f"meeting-{self.jobs}").as_uri()
        limit = timedelta(seconds=60)
        with settings.override(cache_dir=place, lock_dir=self.folder / f"locks-{rank}"):
            dist.init_process_group(
                "gloo", init_method=meeting, rank=rank, world_size=size, timeout=limit
            )
            try:
                return work(rank)
            except (Exception, KeyboardInterrupt) as error:
                return type(error).__name__, str(error)


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def measured(spec, problem, device):
    """What a tuner would keep: a plan for both objectives, which names its process."""
    bucket, target = spec.bucket(problem), device_target(device)
    for objective in ("eager", "graph"):
        plan = replace(
            select(spec, problem, target, objective),
            candidate=Candidate("aten"),
            bucket=bucket.key,
            origin="tuned",
            reason=f"measured by process {os.getpid()}",
            target=target.key,
            source_hash=implementation("rms_norm", "aten").source_hash,
            evidence=Outcome("ok", device_us=3.0, repeats=3),
            provenance=provenance(),
        )
        store().save_plan(plan, bucket.family(spec.axes(problem)), dict(bucket.axes))


@pytest.fixture
def tuner(monkeypatch, tmp_path):
    """In place of the tuner: says who tuned what, and keeps a plan that names its process."""
    log = tmp_path / "tuned"
    log.touch()
    wishes = {"before": lambda: None}

    def tune(spec, problem, device, *rest, **options):
        wishes["before"]()
        with log.open("a") as file:
            file.write(f"{dist.get_rank() if dist.is_initialized() else '-'} {problem}\n")
        measured(spec, problem, device)
        return TuningResult()

    monkeypatch.setattr(get_op, "tune_problem", tune)
    wishes["log"] = lambda: [line.split(" ", 1)[0] for line in log.read_text().splitlines()]
    return wishes


def ask(shape=SHAPE, **options):
    return gm.get_op("rms_norm", (torch.ones(shape),), group=dist.group.WORLD, **options)


def said(bound):
    return bound.plan.origin, str(bound.plan.candidate), bound.plan.reason


@pytest.mark.parametrize("shared", [True, False])
def test_the_first_rank_tunes_and_all_have_its_plan(job, tuner, shared):
    def work(rank):
        if rank == 0:
            time.sleep(0.2)  # the others wait for it
        first = said(ask())
        target = device_target(torch.device("cpu"))
        direct = select(load("rms_norm"), ask().problem, target, "eager")
        alone = said(gm.get_op("rms_norm", (torch.ones(SHAPE),)))
        return first, (direct.origin, str(direct.candidate), direct.reason), alone

    results = job.run(4, work, shared=shared)
    assert tuner["log"]() == ["0"]
    assert len({r for result in results for r in result}) == 1
    assert results[0][0][0] == "tuned"


def test_a_plan_that_one_rank_has_is_not_the_others_unless_they_agree(job, tuner):
    """Without a group everybody asks for itself, and waits for nobody."""
    results = job.run(2, lambda rank: said(gm.get_op("rms_norm", (torch.ones(SHAPE),))))
    assert sorted(tuner["log"]()) == ["0", "1"]
    assert results[0] != results[1]
    agreed = job.run(2, lambda rank: said(ask()))
    assert agreed == [results[0]] * 2
    assert len(tuner["log"]()) == 2


def test_ranks_that_ask_other_problems_have_their_own_first(job, tuner):
    shapes = [(8, 64), (8, 128), (8, 64), (8, 128)]

    def work(rank):
        return said(ask(shapes[rank])), said(ask())

    results = job.run(4, work)
    assert sorted(tuner["log"]()) == ["0", "1"]
    own, same = zip(*results, strict=True)
    assert own[0] == own[2] != own[1] == own[3]
    assert set(same) == {own[0]}


def test_ranks_in_one_bucket_share_its_plan(job, tuner):
    results = job.run(2, lambda rank: said(ask((17 + rank, 64))))
    assert tuner["log"]() == ["0"]
    assert results[0] == results[1]


def test_untuned_ranks_agree_on_what_the_first_selects(job, tuner):
    def work(rank):
        if rank == 0:
            gm.get_op("rms_norm", (torch.ones(SHAPE),))  # it alone has a plan
        return said(ask(tune="never")), said(ask((9, 64), tune="never"))

    results = job.run(3, work)
    assert results[0] == results[1] == results[2]
    assert [plan[0] for plan in results[1]] == ["tuned", "neighbour"]
    assert tuner["log"]() == ["0"]


@pytest.mark.parametrize("wrong", [{"objective": "quick"}, {"tune": "perhaps"}, {"shape": ()}])
def test_a_rank_that_asks_what_cannot_be_is_an_error_everywhere_and_nobody_hangs(job, tuner, wrong):
    def work(rank):
        with pytest.raises(gm.GristmillError) as caught:
            ask(**(wrong if rank == 1 else {}))
        return type(caught.value).__name__, str(caught.value), said(ask())

    results = job.run(3, work)
    assert [r[0] for r in results] == ["TuningError", "InvalidInputError", "TuningError"]
    assert all("rank 1 asked what it cannot (InvalidInputError" in results[i][1] for i in (0, 2))
    assert len({r[2] for r in results}) == 1  # and the next question is answered


def interrupted():
    raise TuningInterrupted(TuningResult())


def failed():
    raise gm.TuningError("no candidate was right")


@pytest.mark.parametrize(
    ("how", "name"), [(failed, "TuningError"), (interrupted, "TuningInterrupted")]
)
def test_a_run_that_fails_or_is_interrupted_ends_for_all(job, tuner, how, name):
    tuner["before"] = how

    def work(rank):
        try:
            ask()
        except (gm.TuningError, KeyboardInterrupt) as error:
            tuner["before"] = lambda: None
            return type(error).__name__, str(error), said(ask())

    results = job.run(3, work)
    assert [r[0] for r in results] == [name, "TuningError", "TuningError"]
    assert f"rank 0 has no plan ({name}" in results[1][1]
    assert len({r[2] for r in results}) == 1


@pytest.mark.parametrize("when", ["before it asks", "while it tunes"])
def test_a_rank_that_dies_is_an_error_for_the_others_at_once(job, tuner, when):
    dying = 0 if when == "while it tunes" else 1
    if when == "while it tunes":
        tuner["before"] = lambda: os._exit(9)

    def work(rank):
        dist.barrier()
        if rank == dying and when == "before it asks":
            os._exit(9)
        began = time.monotonic()
        try:
            ask()
        except gm.TuningError as error:
            return str(error), time.monotonic() - began

    results = job.run(3, work)
    assert results[dying] is None
    for rank in {0, 1, 2} - {dying}:
        assert "one of them did not answer" in results[rank][0]
        assert results[rank][1] < 30  # half of the group's time-out


def test_what_was_agreed_is_used_on_every_rank_and_can_be_frozen(job, tuner):
    def work(rank):
        ask(tune="never")
        return sorted({p.plan.origin for p in read_lock(gm.freeze(f"{job.folder}/{rank}")).plans})

    assert job.run(2, work) == [["vendor"]] * 2


@pytest.mark.parametrize("packed", [False, True])
def test_a_plan_goes_with_what_vouches_for_its_fallback_unless_it_is_a_packs(job, tuner, packed):
    entry = kept()
    values = torch.ones(64, 256), torch.ones(256)

    def work(rank):
        folder = job.folder / f"packs-{rank}"
        folder.mkdir()
        with settings.override(pack_dir=folder):
            if rank == 0 and packed:
                ship(folder, entry, measurements=[beside(entry)])
            elif rank == 0:
                save(entry)
                store().record([beside(entry), beside(entry, "row")])
            agreed = gm.get_op("rms_norm", values, group=dist.group.WORLD, tune="never").plan
            mine = store().plan("rms_norm", entry.plan.bucket, TARGET.key, "eager")
            return agreed, chosen().fallback, mine

    (first, _, _), (agreed, fallback, mine) = job.run(2, work)
    assert agreed == first
    assert (agreed.candidate, agreed.fallback, agreed.packed) == (
        entry.plan.candidate, entry.plan.fallback, packed,
    )  # fmt: skip
    assert mine == (None if packed else entry.plan)
    assert packed or fallback == entry.plan.fallback


def test_ranks_with_other_sources_do_not_agree(job, tuner, monkeypatch):
    def work(rank):
        if rank == 1:

            class Other:
                source_hash = "another"
                name = "aten"

            monkeypatch.setattr(agree, "implementation", lambda op, name: Other)
        return said(ask())

    results = job.run(2, work)
    assert results[0][0] == "tuned"
    assert results[1][0] == "TuningError"
    assert "Install one version" in results[1][1]


def test_a_part_of_the_ranks(job, tuner):
    def work(rank):
        part = dist.new_group([1, 2])
        if rank == 0:
            with pytest.raises(gm.InvalidInputError, match="this process is not in it"):
                gm.get_op("rms_norm", (torch.ones(SHAPE),), group=part)
            return None
        return said(gm.get_op("rms_norm", (torch.ones(SHAPE),), group=part))

    results = job.run(3, work)
    assert results[1] == results[2]
    assert tuner["log"]() == ["1"]


def test_what_is_no_group_is_refused(job, tuner):
    with pytest.raises(gm.InvalidInputError, match=r"not initialised.*init_process_group"):
        gm.get_op("rms_norm", (torch.ones(SHAPE),), group=object())

    def work(rank):
        return gm.get_op("rms_norm", (torch.ones(SHAPE),), group="all")

    ((name, text),) = job.run(1, work)
    assert name == "InvalidInputError"
    assert "it is str" in text


def test_ranks_agree_with_the_real_tuner(job):
    def work(rank):
        bound = ask(budget_s=5.0)
        y = bound(torch.ones(SHAPE))
        return said(bound), bound.plan.evidence, y.sum().item()

    results = job.run(2, work)
    assert results[0] == results[1]
    assert results[0][0][0] == "tuned"
