"""Packs: a store's rows as a text file, back, merged and compared; every kind of damage."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_cases import FAMILY, KEY, in_child, measurement, plan, reachable_folder
from test_store import MEASUREMENTS, PLANS, TEXT

from gristmill.cache import packs
from gristmill.cache.database import FILE_NAME
from gristmill.cache.difference import differences
from gristmill.cache.exchange import bring, collect
from gristmill.cache.packs import KeptPlan, Pack
from gristmill.cache.store import PlanStore
from gristmill.core.config import Config
from gristmill.core.plan import INTERRUPTED, Candidate, Outcome
from gristmill.core.registry import implementation
from gristmill.errors import CacheError, InvalidInputError, PackError

OLD = '{"torch":"1.0"}'
AXES = st.dictionaries(TEXT, st.integers())


@pytest.fixture
def mine(tmp_path):
    return PlanStore(tmp_path / "mine")


@pytest.fixture
def theirs(tmp_path):
    return PlanStore(tmp_path / "theirs")


def kept(at=1.0, repeats=3, **fields):
    evidence = Outcome("ok", device_us=3.0, repeats=repeats)
    return KeptPlan(plan(**{"evidence": evidence, **fields}), FAMILY, {"M": 16}, at)


def current(bucket=KEY[1], **fields):
    """A plan of an implementation that is here, with its source as it is."""
    source = implementation("rms_norm", "row").source_hash
    made = plan(bucket=bucket, **{"source_hash": source, **fields})
    return dataclasses.replace(made, op="rms_norm")


def fill(store):
    store.save_plan(plan(), FAMILY, {"M": 16})
    store.save_plan(plan(objective="graph"), FAMILY, {"M": 16})
    store.save_plan(plan(bucket="b2", provenance=OLD, fallback=None), FAMILY, {"M": 32})
    store.record([measurement(BLOCK=64), measurement(BLOCK=32, at=2.0), measurement("aten")])


def exported(store, path, **options):
    collect(store, **options).pack.write(path)
    return path.read_bytes()


def test_exporting_twice_gives_the_same_bytes_whatever_order_the_rows_came_in(
    mine, theirs, tmp_path
):
    fill(mine)
    first = exported(mine, tmp_path / "a.jsonl")
    assert exported(mine, tmp_path / "b.jsonl") == first
    lines = first.decode().splitlines()
    pack = packs.read(tmp_path / "a.jsonl")
    shuffled = Pack(pack.plans[::-1], pack.measurements[::-1])
    assert shuffled.text().splitlines() == lines
    bring(theirs, shuffled)
    assert exported(theirs, tmp_path / "c.jsonl") == first


def test_the_header_says_what_a_pack_holds(mine, tmp_path):
    fill(mine)
    header, *lines = map(json.loads, exported(mine, tmp_path / "a").decode().splitlines())
    assert header == {
        "format": "gristmill-pack",
        "version": 1,
        "gristmill": header["gristmill"],
        "devices": ["H200"],
        "targets": [KEY[2]],
        "ops": ["op"],
        "plans": 3,
        "measurements": 3,
    }
    assert [line["kind"] for line in lines] == ["plan"] * 2 + ["measurement"] * 3 + ["plan"]
    assert lines[0]["config"] == {"BLOCK": 64}  # to be read, not a text in a text
    assert lines[-1]["provenance"] == {"torch": "1.0"}


def test_an_import_gives_the_store_that_was_exported(mine, theirs, tmp_path):
    fill(mine)
    exported(mine, tmp_path / "a")
    done = bring(theirs, packs.read(tmp_path / "a"))
    assert (done.plans, done.measurements, done.kept) == (3, 3, 0)
    assert sorted(theirs.plans(), key=str) == sorted(mine.plans(), key=str)
    key = lambda m: m.candidate.config.key  # noqa: E731
    assert sorted(theirs.measurements(*KEY), key=key) == sorted(mine.measurements(*KEY), key=key)
    assert theirs.family(KEY[0], FAMILY, KEY[2], "graph") == [({"M": 16}, plan(objective="graph"))]
    again = bring(theirs, packs.read(tmp_path / "a"))
    assert (again.plans, again.measurements, again.kept) == (0, 0, 6)


@given(
    st.lists(
        st.builds(KeptPlan, PLANS, TEXT, st.dictionaries(TEXT, st.integers()), st.floats(0, 9))
    ),
    st.lists(MEASUREMENTS),
)
def test_any_rows_come_back_from_the_text(plans, measurements):
    def refuse(number, fault):
        raise AssertionError(f"{number}: {fault}")

    pack = packs.merge([Pack((p,)) for p in plans] + [Pack((), (m,)) for m in measurements])
    again = packs.parse(pack.text(), refuse)
    assert again.text() == pack.text()
    assert len(again.plans) == len(pack.plans)
    rows = {packs.line("plan", p.row) for p in pack.plans}
    assert {packs.line("plan", p.row) for p in again.plans} == rows


def test_what_was_measured_here_is_not_overruled(mine, tmp_path):
    own = plan(reason="mine", evidence=Outcome("ok", device_us=9.0, repeats=1))
    mine.save_plan(own, FAMILY, {"M": 16})
    mine.record([measurement(BLOCK=64, device_us=9.0, at=1.0)])
    better = Pack((kept(at=1e12, repeats=500),), (measurement(BLOCK=64, device_us=1.0, at=1e12),))
    done = bring(mine, better)
    assert (done.plans, done.measurements, done.kept) == (0, 0, 2)
    assert PlanStore(mine.folder).plan(*KEY, "eager") == own
    assert mine.measurements(*KEY)[0].outcome.device_us == 9.0


def test_an_imported_plan_of_other_versions_goes_below_the_users(mine):
    own = plan(reason="mine")
    mine.save_plan(own, FAMILY, {"M": 16})
    assert bring(mine, Pack((kept(at=1e12, provenance=OLD),))).plans == 1
    assert PlanStore(mine.folder).plan(*KEY, "eager") == own


def test_a_plan_of_a_kernel_that_has_changed_makes_room_for_one_that_has_not(mine):
    mine.save_plan(current(source_hash="old"), FAMILY, {"M": 16})
    new = KeptPlan(current(reason="new"), FAMILY, {"M": 16}, 1.0)
    assert bring(mine, Pack((new,))).plans == 1
    assert mine.plan("rms_norm", *KEY[1:], "eager").reason == "new"
    dead = KeptPlan(current(source_hash="older"), FAMILY, {"M": 16}, 2.0)
    done = bring(mine, Pack((dead,)))
    assert (done.plans, done.kept, done.stale) == (0, 1, 1)


def test_an_import_is_seen_by_a_store_that_has_looked_already(mine):
    assert mine.plan(*KEY, "eager") is None
    bring(mine, Pack((kept(),)))
    assert mine.plan(*KEY, "eager") is not None


def test_plans_only_are_those_that_can_be_used_with_what_they_rest_on(mine, tmp_path):
    row = implementation("rms_norm", "row").source_hash
    aten = implementation("rms_norm", "aten").source_hash
    for made in (
        current(fallback=Candidate("aten")),
        current("stale", source_hash="old"),
        current("interrupted", provenance=INTERRUPTED),
    ):
        mine.save_plan(made, FAMILY, {"M": 16})
    of = {"op": "rms_norm"}
    rows = [
        dataclasses.replace(measurement("row", source=row, BLOCK=64), **of),
        dataclasses.replace(measurement("row", source="old", BLOCK=64), **of),
        dataclasses.replace(measurement("row", source=row, BLOCK=32), **of),  # part of the search
        dataclasses.replace(measurement("aten", source=aten), **of),
    ]
    mine.record(rows)
    found = collect(mine, plans_only=True)
    assert [p.plan.bucket for p in found.pack.plans] == [KEY[1]]
    assert {(m.candidate.implementation, m.source_hash) for m in found.pack.measurements} == {
        ("row", row),
        ("aten", aten),
    }
    assert found.left_out == {"of interrupted searches": 1, "of other versions of their kernels": 1}
    assert len(collect(mine).pack.plans) == 3


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 2), ({"op": "op"}, 2), ({"device": "h200"}, 1), ({"device": "cuda"}, 1),
     ({"device": "*:4:*"}, 1), ({"device": "a cpu"}, 1)],
)  # fmt: skip
def test_an_export_is_of_an_op_and_of_devices(mine, options, count):
    mine.save_plan(plan(), FAMILY, {"M": 16})
    mine.save_plan(dataclasses.replace(plan(), target="cpu:x86_64:4:A CPU"), FAMILY, {"M": 16})
    assert len(collect(mine, **options).pack.plans) == count


def test_nothing_to_export_says_what_there_is(mine):
    with pytest.raises(InvalidInputError, match="it holds nothing of no device"):
        collect(mine)
    mine.save_plan(plan(), FAMILY, {"M": 16})
    for options in ({"op": "matmul"}, {"device": "H100"}):
        with pytest.raises(InvalidInputError, match="it holds op of H200"):
            collect(mine, **options)


def test_a_damaged_row_is_left_out_and_counted(mine):
    fill(mine)
    mine._database.write(lambda c: c.execute("UPDATE plans SET evidence = 'x' WHERE bucket = 'b2'"))
    found = collect(mine)
    assert (len(found.pack.plans), found.left_out) == (2, {"damaged or of another version": 1})


GOOD = Pack((kept(), kept(objective="graph")), (measurement(),)).text().splitlines()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1 .* no header"),
        (["{}"], "line 1 .* no header"),
        (["not JSON", *GOOD[1:]], "line 1 .* no header"),
        (GOOD[:-1], "line 1 .* 2 lines follow; the file is cut short"),
        ([*GOOD, GOOD[1]], "line 1 .* 4 lines follow"),
        ([GOOD[0].replace('"version":1', '"version":2'), *GOOD[1:]], "version is 2 .*, not 1"),
        ([GOOD[0].replace('"plans":2', '"plans":"2"'), *GOOD[1:]], "announces '2' plans"),
        ([*GOOD[:2], "{", GOOD[3]], "line 3 "),
        ([*GOOD[:2], "[1]", GOOD[3]], "line 3 .* neither of plan, measurement"),
        ([*GOOD[:2], GOOD[2].replace('"kind":"plan"', '"kind":"lease"'), GOOD[3]], "line 3 "),
        ([*GOOD[:2], GOOD[1], GOOD[3]], "line 3 .* a line before it is about the same op"),
        ([*GOOD[:3], GOOD[3].replace('"ok"', '"good"')], "line 4 .* unknown value 'good'"),
        ([*GOOD[:3], GOOD[3].replace('"outcome"', '"outcom"')], "line 4 .* has no outcom"),
        ([*GOOD[:3], GOOD[3].replace('"bucket"', '"problem"')], "line 4 "),
        ([*GOOD[:2], GOOD[2].replace('"M":16', '"M":"16"'), GOOD[3]], "line 3 .* axes"),
        ([*GOOD[:2], GOOD[2].replace('"created_at":1.0', '"created_at":null'), GOOD[3]], "line 3"),
        ([*GOOD[:2], GOOD[2].replace("fastest", "fast\udcff"), GOOD[3]], "line 3 .*utf-8"),
    ],
)
def test_damage_is_refused_with_its_line_and_nothing_is_imported(mine, tmp_path, lines, message):
    path = tmp_path / "pack.jsonl"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    with pytest.raises(PackError, match=message):
        bring(mine, packs.read(path))
    assert mine.plans() == []


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(PackError, match=r"cannot be read .*Name one"):
            packs.read(path)
    with pytest.raises(PackError, match="cannot be written"):
        Pack().write(tmp_path / "no" / "folder")


def test_a_pack_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "pack.jsonl"
    Pack((kept(),)).write(path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packs.os, "fsync", full)
    with pytest.raises(PackError, match="No space left"):
        Pack((kept(), kept(objective="graph"))).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_import_that_fails_in_the_middle_changes_nothing(mine):
    fill(mine)
    before = sorted(mine.plans(), key=str)
    trigger = (
        "CREATE TRIGGER full BEFORE INSERT ON measurements BEGIN "
        "SELECT RAISE(ABORT, 'database or disk is full'); END"
    )
    mine._database.write(lambda c: c.execute(trigger))
    new = Pack((kept(bucket="new"),), (measurement("another"),))
    with pytest.raises(CacheError, match="nothing was imported"):
        bring(mine, new)
    assert sorted(PlanStore(mine.folder).plans(), key=str) == before


def test_a_store_that_cannot_be_written_is_exported_but_not_imported_into():
    with reachable_folder() as folder:
        fill(PlanStore(folder))
        (folder / FILE_NAME).chmod(0o444)
        folder.chmod(0o555)

        def child():
            store = PlanStore(folder)
            count = len(collect(store).pack.plans)
            try:
                bring(store, Pack((kept(bucket="new"),)))
            except CacheError as error:
                return count, str(error)
            return count, ""

        count, message = in_child(child, ordinary_user=True)
    assert count == 3
    assert "nothing was imported" in message


def test_merging_takes_current_sources_then_repeats_then_the_newer():
    def best(*entries):
        forth, back = (
            packs.merge([Pack((e,)) for e in order]) for order in (entries, entries[::-1])
        )
        assert forth == back
        assert len(forth.plans) == 1
        return forth.plans[0]

    slow, thorough, new = kept(at=2.0), kept(repeats=60), kept(at=3.0)
    assert best(slow, thorough) == thorough
    assert best(slow, new) == new
    assert best(slow, new, thorough) == thorough
    live = KeptPlan(current(), FAMILY, {"M": 16}, 1.0)
    dead = KeptPlan(current(source_hash="old"), FAMILY, {"M": 16}, 9.0)
    assert best(live, dead) == live
    assert packs.current_only(Pack((live,))) == Pack((live,))
    assert packs.current_only(Pack((dead,))) == Pack()


def test_merging_keeps_both_where_nothing_conflicts():
    a = Pack((kept(),), (measurement(BLOCK=1),))
    b = Pack((kept(bucket="b"), kept(provenance=OLD)), (measurement(BLOCK=1, at=5.0),))
    merged = packs.merge([a, b])
    assert len(merged.plans) == 3
    assert [m.measured_at for m in merged.measurements] == [5.0]


def test_packs_differ_by_what_they_choose():
    same, other = kept(), kept(candidate=Candidate("row", Config({"BLOCK": 32})))
    slower = kept(evidence=Outcome("ok", device_us=99.0), at=7.0)
    assert differences(Pack((same,)), Pack((slower,))) == []
    (changed,) = differences(Pack((same,)), Pack((other,)))
    assert (changed.first, changed.second) == (same.plan, other.plan)
    (source,) = differences(Pack((same,)), Pack((kept(source_hash="s2"),)))
    assert source.to_json()["second"]["source_hash"] == "s2"
    (missing,) = differences(Pack((same,)), Pack())
    assert missing.second is None
    assert missing.to_json()["first"]["time_us"] == 3.0
    assert differences(Pack((same, kept(provenance=OLD, at=0.5))), Pack((same,))) == []
