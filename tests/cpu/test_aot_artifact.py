"""Artifacts on disk: written whole or not at all, and read with every fault named."""

from __future__ import annotations

import dataclasses
import json

import pytest

from aot_cases import add_kernel, entry
from gristmill import aot
from gristmill.aot import writing
from gristmill.aot.manifest import MANIFEST_FILE, Manifest, Slot
from gristmill.aot.manifest_json import from_text, to_text
from gristmill.errors import ArtifactError

KERNEL = entry(add_kernel(num_warps=[4, 8]).types(T=["fp16", "bf16"]), "sm_90", "gfx942")
SLOTS = (Slot("x_ptr", "pointer", 8),)
VARIANTS = tuple(dataclasses.replace(v, slots=SLOTS) for v in KERNEL.variants)
WHOLE = Manifest("add", (dataclasses.replace(KERNEL, variants=VARIANTS),), {"triton": "3.6.0"})


def empty(place, **changes):
    """An artifact without kernels, put to its place."""
    source = place.parent / "binaries"
    source.mkdir(exist_ok=True)
    return writing.write(Manifest("empty", (), changes), source, writing.check_place(place))


def test_an_artifact_replaces_another(tmp_path):
    empty(tmp_path / "a", triton="1")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    second = empty(tmp_path / "b", triton="2")
    assert aot.read_manifest(tmp_path / "a") == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "binaries"]


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    empty(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"has 'notes.txt', which no build wrote"):
        empty(tmp_path / "a")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="is a file"):
        empty(tmp_path / "file")
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot be written to .*file/a: "):
        writing.check_place(tmp_path / "file" / "a")
    with pytest.raises(ArtifactError, match="cannot be written to /proc/a"):
        writing.check_place("/proc/a")


def test_what_was_there_comes_back_where_replacing_it_fails(tmp_path, monkeypatch):
    first = empty(tmp_path / "a", triton="1")
    real, calls = type(tmp_path).rename, []

    def rename(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", rename)
    with pytest.raises(ArtifactError, match="No space left"):
        empty(tmp_path / "a", triton="2")
    assert aot.read_manifest(tmp_path / "a") == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "binaries"]


def test_files_that_changed_are_found(tmp_path):
    (tmp_path / "binaries").mkdir()
    for name in ("one", "two", "three"):
        (tmp_path / "binaries" / name).write_text(name)
    manifest = empty(tmp_path / "a")
    assert set(manifest.files) >= {"kernels/one", "kernels/two", "kernels/three"}
    (tmp_path / "a" / "kernels" / "one").write_text("other")
    (tmp_path / "a" / "kernels" / "two").unlink()
    assert aot.damaged_files(tmp_path / "a", manifest) == ["kernels/one", "kernels/two"]


def damaged(change):
    def make(file):
        data = json.loads(file.read_text())
        change(data)
        file.write_text(json.dumps(data))

    return make


DAMAGES = {
    "gone": (lambda f: f.unlink(), "cannot be read: No such file"),
    "no text": (lambda f: f.write_bytes(b"\xff\xfe"), "cannot be read: it is no text"),
    "cut": (lambda f: f.write_text(f.read_text()[:-9]), "is damaged: it is no JSON"),
    "nested": (lambda f: f.write_text("[" * 100_000), "is damaged: it is no JSON"),
    "of something else": (lambda f: f.write_text("{}"), "names no schema version"),
    "a list": (lambda f: f.write_text("[]"), "names no schema version"),
    "of tomorrow": (damaged(lambda d: d.update(schema=2)), "of schema version 2; .* reads 1"),
    "without a field": (damaged(lambda d: d.pop("name")), "has not the fields .*name"),
    "a number": (damaged(lambda d: d.update(name=1)), "the manifest.name is 1, no str"),
    "kernels": (damaged(lambda d: d.update(kernels={})), "the manifest.kernels is no list"),
    "a slot": (
        damaged(lambda d: d["kernels"][0]["variants"][0]["slots"][0].update(part="x")),
        r"kernels\[0\].variants\[0\].slots\[0\].part is 'x', none of value",
    ),
    "a size": (
        damaged(lambda d: d["kernels"][0]["variants"][0]["usage"].update(registers="4")),
        "usage.registers is '4', of no type",
    ),
    "a variable": (
        damaged(lambda d: d["kernels"][0].update(variables=[["T"]])),
        r"variables\[0\] has 1 values in place of 2",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_manifest_that_is_not_whole_says_where(case, tmp_path):
    damage, message = DAMAGES[case]
    file = tmp_path / MANIFEST_FILE
    file.write_text(to_text(WHOLE))
    damage(file)
    with pytest.raises(ArtifactError, match=message):
        aot.read_manifest(tmp_path)


def test_a_manifest_is_one_text():
    text = to_text(WHOLE)
    assert from_text(text, "it") == WHOLE
    assert text.endswith("}\n")
    assert json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n" == text
