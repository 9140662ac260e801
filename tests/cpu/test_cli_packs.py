"""`gristmill cache export | import | merge | diff` and `gristmill freeze`, as a user runs them."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from gristmill import settings
from gristmill.cache import packs
from gristmill.cache.lockfile import read_lock
from gristmill.cache.packs import Pack
from gristmill.cache.shipped import pack_name
from gristmill.cache.store import store
from gristmill.cli import doctor
from gristmill.cli.app import app
from gristmill.core.plan import Candidate
from pack_cases import OLD, TARGET, beside, kept, save, ship

H200 = "cuda:sm_90:132:NVIDIA H200"


@pytest.fixture
def run(pack_dir, tmp_path, monkeypatch):
    """Run a command in this process, in a folder and with a plan store of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160"})
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run


def json_of(run, *arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


def test_a_store_goes_through_a_pack_into_another(run, tmp_path):
    save(kept(), kept(96, **OLD))
    store().record([beside(kept())])
    shown = run("cache", "export", "a.jsonl").stdout
    assert "a.jsonl: 2 plans, 1 measurements" in shown
    with settings.override(cache_dir=tmp_path / "other"):
        shown = run("cache", "import", "a.jsonl").stdout
        assert "new: 2 plans, 1 measurements" in shown
        assert "1 plans are of kernels that are others here" in shown
        assert json_of(run, "cache", "import", "a.jsonl") == {
            "plans": 0,
            "measurements": 0,
            "kept": 3,
            "stale": 1,
        }
        assert len(store().plans()) == 2


def test_what_an_export_leaves_out_is_said(run):
    save(kept(), kept(96, **OLD))
    shown = run("cache", "export", "--plans-only", "a.jsonl").stdout
    assert "left out: 1 rows of other versions of their kernels" in shown
    done = json_of(run, "cache", "export", "--plans-only", "--op", "rms_norm", "b.jsonl")
    assert (done["plans"], done["path"]) == (1, "b.jsonl")
    assert done["left_out"] == {"of other versions of their kernels": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export",), "no FILE and no --shipped"),
        (("export", "a.jsonl", "--shipped"), "FILE and --shipped"),
        (("export", "a.jsonl", "--op", "matmul"), "nothing to export of op matmul"),
        (("export", "no/folder.jsonl"), "cannot be written"),
        (("import", "none.jsonl"), "cannot be read"),
        (("import", "bad.jsonl"), "line 1 of `bad.jsonl`"),
        (("merge", "none.jsonl", "-o", "c.jsonl"), "cannot be read"),
        (("diff", "none.jsonl", "none.jsonl"), "cannot be read"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(run, tmp_path, arguments, message):
    save(kept())
    (tmp_path / "bad.jsonl").write_text("{}\n")
    result = run("cache", *arguments, code=2)
    assert message in result.stderr
    assert not result.stdout


def test_merge_and_its_stale_rows(run, tmp_path):
    Pack((kept(), kept(96, **OLD))).write(tmp_path / "a.jsonl")
    Pack((kept(128),)).write(tmp_path / "b.jsonl")
    assert json_of(run, "cache", "merge", "a.jsonl", "b.jsonl", "-o", "c.jsonl")["plans"] == 3
    shown = run("cache", "merge", "c.jsonl", "--drop-stale", "-o", "c.jsonl").stdout
    assert "c.jsonl: 2 plans, 0 measurements" in shown
    assert len(packs.read(tmp_path / "c.jsonl").plans) == 2


def test_diff_shows_both_choices_and_ends_with_1_where_they_differ(run, tmp_path):
    aten = kept(name="aten", fallback=Candidate("aten"))
    Pack((kept(), kept(128))).write(tmp_path / "a.jsonl")
    Pack((aten, kept(128))).write(tmp_path / "b.jsonl")
    assert run("cache", "diff", "a.jsonl", "a.jsonl").stdout == "the same plans\n"
    shown = run("cache", "diff", "a.jsonl", "b.jsonl", code=1).stdout
    assert shown.index("inductor") < shown.index("aten")
    assert "rows=64" in shown
    assert "rows=128" not in shown
    found = json_of(run, "cache", "diff", "a.jsonl", "b.jsonl", code=1)
    assert found["differ"] is True
    (difference,) = found["differences"]
    assert difference["first"]["time_us"] == 5.0
    assert difference["second"]["implementation"] == "aten"
    assert json_of(run, "cache", "diff", "a.jsonl", "a.jsonl") == {
        "differ": False,
        "differences": [],
    }


def test_a_shipped_pack_is_named_by_its_device(run, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "PACKS", tmp_path)
    elsewhere = dataclasses.replace(kept().plan, target=H200)
    save(kept(), dataclasses.replace(kept(), plan=elsewhere))
    message = run("cache", "export", "--shipped", "--plans-only", code=2).stderr
    assert "NVIDIA H200" in message
    assert "--device" in message
    run("cache", "export", "--shipped", "--plans-only", "--device", "h200")
    assert packs.read(tmp_path / "cuda-sm-90-132-nvidia-h200.jsonl").targets == (H200,)


def test_an_op_is_exported_into_the_shipped_pack_in_place_of_itself(run, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "PACKS", tmp_path)
    other = dataclasses.replace(kept(128), plan=dataclasses.replace(kept(128).plan, op="matmul"))
    beside_other = dataclasses.replace(beside(other), op="matmul")
    pack = tmp_path / pack_name(TARGET.key)
    Pack((kept(96), other), (beside(kept(96)), beside_other)).write(pack)
    save(kept(), other)
    store().record([beside(kept())])
    run("cache", "export", "--shipped", "--op", "rms_norm")
    found = packs.read(pack)
    assert {(p.plan.op, p.axes["rows"]) for p in found.plans} == {("matmul", 128), ("rms_norm", 64)}
    assert {(m.op, m.bucket) for m in found.measurements} == {
        ("matmul", other.plan.bucket),
        ("rms_norm", kept().plan.bucket),
    }
    run("cache", "export", "--shipped")
    assert len(packs.read(pack).measurements) == 1  # without --op it is what the store has


def test_freeze_writes_what_the_store_and_the_pack_have(run, tmp_path, pack_dir):
    save(kept())
    ship(pack_dir, kept(1024))
    assert "gristmill-lock.json: 2 plans" in run("freeze").stdout
    assert not read_lock(tmp_path / "gristmill-lock.json").strict
    assert ", strict" in run("freeze", "--strict", "s.json").stdout
    run("freeze", "--check", "s.json")


def test_freeze_check_tells_other_kernels_and_other_devices(run, tmp_path):
    save(kept())
    run("freeze", "a.json")
    path = tmp_path / "a.json"
    path.write_text(path.read_text().replace(kept().plan.source_hash, "0" * 16))
    assert "rms_norm/inductor is another here" in run("freeze", "--check", "a.json", code=1).stdout
    path.write_text(path.read_text().replace(TARGET.key, H200))
    assert "they are of NVIDIA H200" in run("freeze", "--check", "a.json", code=1).stdout
    found = json_of(run, "freeze", "--check", "a.json", code=1)
    assert (found["plans"], found["plans_here"], found["stale"]) == (1, 0, [])
    assert "does not exist" in run("freeze", "--check", "none.json", code=1).stderr


def test_freeze_says_where_there_is_nothing(run):
    assert "nothing to freeze" in run("freeze", code=1).stderr


def test_tune_is_refused_while_frozen(run, tmp_path):
    save(kept())
    run("freeze", "a.json")
    with settings.override(lock_file=tmp_path / "a.json"):
        message = run("tune", "rms_norm", "--shape", "x=64x256", "--device", "cpu", code=1).stderr
        assert "plans are frozen to" in message


def test_doctor_looks_at_the_lock_file(run, tmp_path):
    assert list(doctor._lock_file(TARGET)) == []
    save(kept())
    run("freeze", "a.json")
    path = tmp_path / "a.json"
    with settings.override(lock_file=path):
        (check,) = doctor._lock_file(TARGET)
        assert (check.status, check.found) == ("ok", f"{path}: 1 plans for this device")
        path.write_text(path.read_text().replace(kept().plan.source_hash, "0" * 16))
        (check,) = doctor._lock_file(TARGET)
        assert check.status == "warn"
        assert "1 stale" in check.found
        path.write_text("")
        (check,) = doctor._lock_file(TARGET)
        assert check.status == "fail"


def test_the_name_of_a_pack_is_one_that_every_file_system_takes():
    assert pack_name("cpu:x86_64:2:Intel(R) Xeon(R) @ 2.20GHz") == (
        "cpu-x86-64-2-intel-r-xeon-r-2-20ghz.jsonl"
    )
