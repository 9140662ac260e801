"""Shipped packs: the layer below the user's store, read when a plan is missing and at no other
time; and the packs of this repository."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from store_cases import warns

import gristmill as gm
from gristmill import settings
from gristmill.cache import packs, shipped
from gristmill.cache.shipped import pack_name
from gristmill.cache.store import store
from gristmill.cli import doctor
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.provenance import provenance
from gristmill.core.registry import implementation
from gristmill.errors import PackError
from gristmill.ops._dispatch import forget
from gristmill.tuning.begin import adopt
from pack_cases import OLD, TARGET, beside, chosen, kept, ship

OTHER = '{"torch":"1.0"}'  # the provenance of other versions
STALE_SHARE = 0.1  # of a committed pack's plans


def test_a_pack_has_what_the_users_store_has_not(pack_dir):
    assert chosen().origin != "tuned"
    entry = kept()
    ship(pack_dir, entry, measurements=[beside(entry)])
    found = chosen()
    reason = "fastest at 5.00 us; from a pack"
    assert found == dataclasses.replace(entry.plan, reason=reason, packed=True)


def test_a_fallback_that_nothing_vouches_for_is_left_out(pack_dir):
    entry = kept()
    ship(pack_dir, entry)
    assert chosen().fallback is None
    old = dataclasses.replace(beside(entry), source_hash="old")
    ship(pack_dir, entry, measurements=[old])
    assert chosen().fallback is None


def test_the_users_plan_goes_first(pack_dir):
    ship(pack_dir, kept())
    own = kept(name="aten", fallback=Candidate("aten"), reason="mine")
    store().save_plan(own.plan, own.family, own.axes)
    assert chosen().reason == "mine"
    changed = kept(name="aten", source_hash="old")  # what the user has is of another source
    store().save_plan(changed.plan, changed.family, changed.axes)
    assert chosen().candidate == Candidate("inductor")


def test_a_packs_own_bucket_goes_before_a_near_one_of_the_user(pack_dir):
    near = kept(rows=128, name="aten", reason="near")
    store().save_plan(near.plan, near.family, near.axes)
    assert chosen().origin == "neighbour"
    ship(pack_dir, kept())
    assert chosen().origin == "tuned"


def test_the_nearest_bucket_is_looked_for_in_both(pack_dir):
    near, far = kept(rows=96), kept(rows=256, name="aten")
    ship(pack_dir, near, measurements=[beside(near)])
    store().save_plan(far.plan, far.family, far.axes)
    found = chosen()
    assert (found.candidate, found.fallback) == (Candidate("inductor"), Candidate("aten"))
    assert (found.origin, found.reason) == ("neighbour", "measured for the nearest bucket, rows=96")
    assert chosen(rows=200).candidate == Candidate("aten")


def test_a_plan_of_a_changed_kernel_is_a_miss_without_a_word(pack_dir):
    untuned = chosen()
    ship(pack_dir, kept(source_hash="old"), kept(rows=128, candidate=Candidate("gone")))
    with warns():
        assert chosen() == untuned


def test_a_plan_of_these_versions_goes_before_one_of_others(pack_dir):
    other = kept(provenance=OTHER, name="aten")
    ship(pack_dir, other)
    assert chosen().revalidate
    ship(pack_dir, other, kept())
    assert not chosen().revalidate


def test_a_plan_of_a_changed_kernel_hides_no_usable_one_of_the_pack(pack_dir):
    """Neither for its bucket nor for a near one, nor from what a lock file takes over."""
    stale, usable = kept(source_hash="old"), kept(provenance=OTHER, name="aten")
    ship(pack_dir, stale, usable)
    assert (chosen().origin, chosen().candidate) == ("tuned", Candidate("aten"))
    assert (chosen(rows=96).origin, chosen(rows=96).candidate) == ("neighbour", Candidate("aten"))
    assert [k.plan.provenance for k in shipped.shipped_plans(TARGET.key).kept] == [OTHER]


def test_a_plan_of_a_changed_kernel_hides_no_usable_one_of_the_store(pack_dir):
    """The stale one is of these versions, and the later one."""
    usable, stale = kept(provenance=OTHER, name="aten"), kept(source_hash="old")
    for entry in (usable, stale):
        store().save_plan(entry.plan, entry.family, entry.axes)
    store().forget()
    assert (chosen().origin, chosen().revalidate) == ("tuned", True)
    assert (chosen(rows=96).origin, chosen(rows=96).candidate) == ("neighbour", Candidate("aten"))


def test_only_the_pack_of_the_device_is_read(pack_dir):
    for key in ("cuda:sm_90:132:NVIDIA H200", "cpu:x86_64:1:Another"):
        (pack_dir / pack_name(key)).write_text("not a pack\n")
    with warns():
        assert chosen().origin != "tuned"
    assert pack_name("cuda:sm_90:132:NVIDIA H200") == "cuda-sm-90-132-nvidia-h200.jsonl"


def test_a_damaged_pack_is_said_once_and_its_good_lines_are_used(pack_dir):
    ship(pack_dir, kept(), kept(rows=1024))
    path = pack_dir / pack_name(TARGET.key)
    path.write_text(path.read_text().replace('"rows":1024', '"rows":"x"'))
    shipped._read.cache_clear()
    with pytest.warns(shipped.CacheWarning, match="line 2: .*counts as missing") as caught:
        assert chosen().origin == "tuned"
    with warns():
        assert chosen(rows=1024).origin != "tuned"
    assert len(caught) == 1
    path.write_text("{}\n")
    shipped._read.cache_clear()
    with pytest.warns(shipped.CacheWarning, match="no header"):
        assert chosen().origin != "tuned"


NEW_PROCESS = """
import json, sys, torch
import gristmill as gm
x = torch.empty(int(sys.argv[1]), 256)
op = gm.get_op("rms_norm", (x, torch.empty(256)), tune="never")
print(json.dumps([op.plan.origin, "gristmill.cache.packs" in sys.modules]))
"""


def test_a_process_that_finds_its_plan_reads_no_pack(pack_dir, tmp_path):
    """The pack is a named pipe that nobody writes: opening it would hang."""
    own = kept(name="aten", fallback=Candidate("aten"))
    store().save_plan(own.plan, own.family, own.axes)
    pipe = pack_dir / pack_name(TARGET.key)
    os.mkfifo(pipe)
    environment = {
        **os.environ,
        "GRISTMILL_CACHE_DIR": str(store().folder),
        "GRISTMILL_PACK_DIR": str(pack_dir),
    }

    def ask(rows):
        command = [sys.executable, "-c", NEW_PROCESS, str(rows)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=True
        )

    assert json.loads(ask(64).stdout) == ["tuned", False]
    pipe.unlink()
    pipe.write_text("not a pack")
    assert "no header" in ask(4096).stderr  # no plan there nor near: here the pack is opened


def test_a_search_starts_with_what_the_pack_has(pack_dir):
    entry = kept(provenance=OTHER)
    ship(pack_dir, entry, measurements=[beside(entry), beside(entry, "inductor")])
    bucket = entry.plan.bucket
    adopt(store(), "rms_norm", bucket, TARGET.key)
    found = store().measurements("rms_norm", bucket, TARGET.key)
    assert {m.candidate.implementation for m in found} == {"aten", "inductor"}
    assert store().plan("rms_norm", bucket, TARGET.key, "eager").revalidate
    adopt(store(), "rms_norm", bucket, TARGET.key)
    assert store().summary().measurements == 2


@pytest.mark.parametrize("source", ["killed", "old"])
def test_what_the_store_has_of_a_bucket_does_not_hide_what_the_pack_has(pack_dir, source):
    """A row of a search that was killed, or of the vendor's call as it was."""
    entry = kept(provenance=OTHER)
    ship(pack_dir, entry, measurements=[beside(entry), beside(entry, "inductor")])
    own = dataclasses.replace(beside(entry, at=2.0), outcome=Outcome("ok", device_us=7.0))
    own = own if source == "killed" else dataclasses.replace(own, source_hash="old")
    store().record([own])
    stale = kept(name="aten", source_hash="old")
    store().save_plan(stale.plan, stale.family, stale.axes)
    where = ("rms_norm", entry.plan.bucket, TARGET.key)
    adopt(store(), *where)
    found = [(m.candidate.implementation, m.source_hash) for m in store().measurements(*where)]
    current = {name: implementation("rms_norm", name).source_hash for name in ("aten", "inductor")}
    assert set(found) == {(own.candidate.implementation, own.source_hash), *current.items()}
    kept_own = [m for m in store().measurements(*where) if m.source_hash == own.source_hash]
    assert own in kept_own  # what was measured here is not overruled
    store().forget()
    plan = store().plan(*where, "eager")
    assert (plan.candidate, plan.revalidate) == (entry.plan.candidate, True)
    adopt(store(), *where)
    assert store().summary().measurements == len(found)


def test_get_op_measures_a_packs_plan_of_other_versions_again(pack_dir):
    entry = kept(provenance=OTHER)
    ship(pack_dir, entry, measurements=[beside(entry, "inductor")])
    values = (torch.randn(64, 256), torch.randn(256))
    assert gm.get_op("rms_norm", values, tune="never").plan.revalidate
    plan = gm.get_op("rms_norm", values, budget_s=1).plan
    assert (plan.origin, plan.revalidate) == ("tuned", False)
    found = store().measurements("rms_norm", entry.plan.bucket, TARGET.key)
    again = [m for m in found if m.candidate == Candidate("inductor")]
    assert {m.provenance for m in again} == {provenance()}


def test_explain_shows_a_plan_that_only_the_pack_has(pack_dir):
    entry = kept(fallback=None)
    ship(pack_dir, entry)
    explanation = gm.explain("rms_norm", (torch.empty(64, 256), torch.empty(256)))
    assert explanation.rows[0].chosen
    assert (explanation.rows[0].status, explanation.rows[0].device_us) == ("ok", 5.0)


def test_explain_shows_a_candidate_once(pack_dir):
    """As these versions measured it, though others did so later and it is faster there."""
    entry = kept(name="aten")
    own = beside(entry)
    faster = Outcome("ok", device_us=1.0)
    other = dataclasses.replace(own, provenance=OTHER, outcome=faster, measured_at=9.0)
    for measurements in ([own, other], [other, own]):
        ship(pack_dir, entry, measurements=measurements)
        explanation = gm.explain("rms_norm", (torch.empty(64, 256), torch.empty(256)))
        rows = [(r.chosen, r.device_us) for r in explanation.rows if r.implementation == "aten"]
        assert rows == [(True, own.outcome.device_us)]


def test_a_fallback_that_was_wrong_under_these_versions_is_left_out(pack_dir):
    entry = kept()
    wrong = dataclasses.replace(beside(entry), outcome=Outcome("wrong", "other values"))
    other = dataclasses.replace(beside(entry, at=9.0), provenance=OTHER)
    ship(pack_dir, entry, measurements=[other])
    assert chosen().fallback == Candidate("aten")
    ship(pack_dir, entry, measurements=[other, wrong])
    assert chosen().fallback is None


def test_a_direct_call_runs_the_packs_plan(pack_dir):
    forget("rms_norm")
    entry = kept(fallback=Candidate("aten"))
    ship(pack_dir, entry, measurements=[beside(entry)])
    x, weight = torch.randn(64, 256), torch.randn(256)
    torch.testing.assert_close(
        gm.rms_norm(x, weight), torch.nn.functional.rms_norm(x, (256,), weight, 1e-6)
    )


def test_doctor_names_the_stale_plans_of_a_pack(pack_dir):
    assert doctor._pack(TARGET).found.startswith("none for")
    ship(pack_dir, kept(), kept(rows=1024, source_hash="old"))
    check = doctor._pack(TARGET)
    assert check.status == "warn"
    assert "2 plans, 1 of them stale: rms_norm/inductor changed since" in check.found
    ship(pack_dir, kept())
    assert doctor._pack(TARGET).status == "ok"
    (pack_dir / pack_name(TARGET.key)).write_text("")
    assert "line 1 " in doctor._pack(TARGET).found


def faults(path):
    """What is wrong with a pack that is to be shipped."""
    try:
        pack = packs.read(path)
    except PackError as error:
        return [str(error)]
    found = []
    if [pack_name(target) for target in pack.targets] != [path.name]:
        found.append(f"it is of {', '.join(pack.targets)}")
    if path.read_text().splitlines()[1:] != pack.text().splitlines()[1:]:
        found.append("it is not as `gristmill cache export` writes it")
    stale = [p.plan for p in pack.plans if not p.is_current]
    if len(stale) > STALE_SHARE * len(pack.plans):
        names = sorted({f"{p.op}/{p.candidate.implementation}" for p in stale})
        found.append(f"{len(stale)} of {len(pack.plans)} plans: {', '.join(names)} changed since")
    return found


def test_every_committed_pack_can_be_read_and_is_of_kernels_as_they_are():
    found = {path.name: faults(path) for path in settings.PACKS.glob("*.jsonl")}
    assert not {name: wrong for name, wrong in found.items() if wrong}
    assert {path.suffix for path in settings.PACKS.iterdir()} <= {".jsonl", ".md"}


def test_what_is_wrong_with_a_pack_is_found(tmp_path):
    ship(tmp_path, *(kept(rows=16 << i) for i in range(10)))
    path = tmp_path / pack_name(TARGET.key)
    assert faults(path) == []
    text = path.read_text()
    ship(tmp_path, *(kept(rows=16 << i, **(OLD if i < 2 else {})) for i in range(10)))
    assert "rms_norm/inductor changed since" in faults(path)[0]
    path.write_text("\n".join([(lines := text.splitlines())[0], *lines[:0:-1], ""]))
    assert faults(path) == ["it is not as `gristmill cache export` writes it"]
    path.write_text(text.replace('"kind"', '"sort"', 1))
    assert "line 2 " in faults(path)[0]
    path.rename(tmp_path / "other.jsonl").write_text(text)
    assert faults(tmp_path / "other.jsonl") == [f"it is of {TARGET.key}"]


def test_the_packs_travel_with_the_package(tmp_path):
    root = settings.PACKS.parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"gristmill/packs/{p.name}" for p in settings.PACKS.iterdir()} <= set(names)


def test_the_readme_of_the_packs_names_the_file_that_is_read():
    readme = (settings.PACKS / "README.md").read_text()
    assert pack_name("cuda:sm_90:132:NVIDIA H200") in readme
