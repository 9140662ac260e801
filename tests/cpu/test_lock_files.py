"""Lock files: where they lie, and every kind of damage."""

from __future__ import annotations

import json

import pytest

import gristmill as gm
from gristmill import settings
from gristmill.ops.plans import LOCK_FILE
from gristmill.selection import frozen
from pack_cases import chosen, save, tuned

pytestmark = pytest.mark.usefixtures("pack_dir")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock.json"


def test_the_default_file_is_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tuned())
    chosen()
    assert gm.freeze() == tmp_path / LOCK_FILE
    assert (tmp_path / LOCK_FILE).exists()


def test_there_has_to_be_something_to_freeze(path):
    for plans in ("used", "stored"):
        with pytest.raises(gm.FrozenError, match=r"nothing to freeze.*Call the ops"):
            gm.freeze(path, plans=plans)
    with pytest.raises(gm.InvalidInputError, match="used, stored, file"):
        gm.freeze(path, plans="all")
    assert not path.exists()
    assert frozen.active() is None


def test_a_lock_that_cannot_be_written_freezes_nothing(tmp_path):
    save(tuned())
    chosen()
    with pytest.raises(gm.FrozenError, match=r"cannot be written .*nothing is frozen"):
        gm.freeze(tmp_path / "no" / "folder.json")
    assert frozen.active() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: "", "cannot be read"),
        (lambda data: json.dumps([]), "no lock file"),
        (lambda data: json.dumps({**data, "format": "x"}), "no lock file"),
        (lambda data: json.dumps({**data, "version": 2}), "version 2 .*this one reads 1"),
        (lambda data: json.dumps({**data, "strict": "no"}), "damaged: it needs `strict`"),
        (lambda data: json.dumps({**data, "plans": [1]}), "plan 0 .*no object"),
        (lambda data: json.dumps({**data, "plans": [{**data["plans"][0], "x": 1}]}), "has no x"),
        (lambda data: json.dumps({**data, "plans": [{"op": "rms_norm"}]}), "plan 0 .*damaged"),
    ],
)
def test_a_damaged_lock_file_is_refused(path, change, message):
    save(tuned())
    chosen()
    gm.freeze(path)
    gm.thaw()
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(gm.FrozenError, match=f"{message}.*Freeze again"):
        gm.freeze(path, plans="file")
    assert frozen.active() is None
    with settings.override(lock_file=path):
        for _ in range(2):  # and again: a process must not run unfrozen because it asked before
            with pytest.raises(gm.FrozenError, match=message):
                chosen()
