"""`aot.load`: with neither Triton nor torch, of what is no artifact, of modules of other builds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import textwrap

import aot_module_process as process
import pytest

import aot_c_cases as cases
from gristmill import aot, settings
from gristmill.aot.manifest_json import to_text
from gristmill.errors import ArtifactError

pytestmark = process.NEEDS


def test_load_needs_neither_triton_nor_torch(tmp_path, tensors, drivers):
    made = process.build(tmp_path / "pair", "pair", [cases.add_entry("pair_add")])
    program = f"""
        import sys
        sys.modules["triton"] = sys.modules["torch"] = None  # importing them raises
        from gristmill import aot, settings
        from gristmill.native.building import loaded
        tensor = loaded("device_tensors", {str(tensors)!r}).Tensor(0x1000)
        artifact = aot.load({str(made)!r})  # compiles
        artifact.pair_add(tensor, tensor, tensor, 64, 1.0, 64)
        assert aot.load({str(made / "manifest.json")!r}).pair_add is not None  # what was compiled
        print(artifact, [m for m in sys.modules if m.split(".")[0] in ("jinja2", "numpy")])
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    environment = cases.child_environment(drivers)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"<artifact 'pair' in {made}: pair_add, pair_add_tuned> []\n"


def other_pythons():
    """Interpreters of other versions on this machine, with the version of each."""
    found = []
    for minor in range(10, 16):
        path = shutil.which(f"python3.{minor}")
        if path is None or minor == sys.version_info.minor:
            continue
        command = [path, "-c", "import sys; print(sys.version_info[1])"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.strip() == str(minor):  # and no launcher without an interpreter behind it
            found.append(path)
    return found


PYTHONS = other_pythons()


@pytest.mark.skipif(not PYTHONS, reason="needs another version of Python")
def test_other_pythons_import_the_module(tmp_path, drivers):
    made = process.build(tmp_path / "pair", "pair", [cases.add_entry("pair_add")])
    module = process.compiled(made, "pair")
    program = """
        import pair
        t = (0x1000, "fp16")
        pair.pair_add(t, t, t, 64, 1.0, BLOCK=64, stream=7)
        try:
            pair.pair_add(t, t, t, 64, 1.0, 65, stream=7)
        except pair.Error as error:
            print(error.status, "needs `BLOCK` to be 64" in str(error))
    """
    environment = cases.child_environment(drivers) | {"PYTHONPATH": str(module.parent)}
    for python in PYTHONS:
        command = [python, "-S", "-c", textwrap.dedent(program)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert (done.stdout, done.stderr) == ("2 True\n", ""), python


def test_what_is_no_artifact_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        aot.load(tmp_path / "nothing")
    made = process.build(tmp_path / "pair", "pair", [cases.add_entry("pair_add")])
    manifest = aot.read_manifest(made)
    text = (made / "manifest.json").read_text()
    (made / "manifest.json").write_text(text.replace('"schema": 1', '"schema": 99'))
    with pytest.raises(ArtifactError, match="schema version 99"):
        aot.load(made)
    (made / "manifest.json").write_text(text.replace('"name": "pair"', '"name": "../pair"'))
    with pytest.raises(ArtifactError, match="is damaged: its name is"):
        aot.load(made)
    (made / "manifest.json").write_text(to_text(manifest))
    (made / "pair.c").write_text("")
    with pytest.raises(ArtifactError, match=r"damaged: pair\.c is missing or was changed"):
        aot.load(made)


def test_a_module_of_another_build_is_refused(tmp_path, monkeypatch):
    made = process.build(tmp_path / "pair", "pair", [cases.add_entry("pair_add")])
    built = process.compiled(made, "pair")
    other = process.build(tmp_path / "other", "pair", [cases.add_entry("pair_add", ("sm_80",))])
    (other / built.name).write_bytes(b"no library")
    with pytest.raises(ArtifactError, match="is no Python module of this artifact"):
        aot.load(other)
    built.replace(other / built.name)
    with pytest.raises(ArtifactError, match="made from another build of the artifact"):
        aot.load(other)
    (other / built.name).unlink()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(ArtifactError, match="does not compile: false failed: no message"):
        aot.load(other)


def test_the_module_is_the_same_whoever_builds_it(tmp_path):
    entries = [cases.add_entry("pair_add")]
    texts = [
        (process.build(tmp_path / place / "pair", "pair", entries) / "pair_module.c").read_text()
        for place in ("one", "other")
    ]
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]


@pytest.mark.skipif(not cases.HAS["cmake"], reason="needs CMake")
def test_cmake_builds_the_module(tmp_path):
    made = process.build(tmp_path / "pair", "pair", [cases.add_entry("pair_add")])
    build = tmp_path / "out"
    cases.compiled("cmake", "-S", made, "-B", build, f"-DPython3_EXECUTABLE={sys.executable}")
    cases.compiled("cmake", "--build", build, "--target", "pair_module")
    (build / "pair.abi3.so").rename(made / "pair.abi3.so")
    assert "pair_add" in repr(aot.load(made))
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", made / "pair.abi3.so"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert symbols[2::3] == ["PyInit_pair"]


@pytest.fixture
def pair_folder(tmp_path):
    """An artifact whose module is compiled when it is loaded."""
    return process.build(tmp_path / "pair", "pair", [cases.add_entry("pair_add")])


def compiler(path, text):
    """A C compiler of one's own."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return str(path)


def refused(folder):
    """What `load` says."""
    with pytest.raises(ArtifactError) as caught:
        aot.load(folder)
    return str(caught.value)


def test_nowhere_to_write_is_no_missing_compiler(tmp_path, pair_folder, monkeypatch):
    taken = tmp_path / "taken"
    taken.write_text("")
    with settings.override(cache_dir=taken):
        assert "pair_add" in repr(aot.load(pair_folder))  # in a temporary folder
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        said = refused(pair_folder)
    assert "cannot be written: not to " + str(taken / "native") in said
    assert "Not a directory" in said
    assert "nor to a temporary folder ([Errno 2]" in said
    assert "Set GRISTMILL_CACHE_DIR to a folder of yours" in said
    assert "compiler" not in said


def test_a_full_disk_is_no_missing_compiler(tmp_path, pair_folder, monkeypatch):
    full = (
        'echo "pair_module.c:1: fatal error: writing to x.s: No space left on device" >&2; exit 1'
    )
    monkeypatch.setenv("CC", compiler(tmp_path / "full", full))
    with settings.override(cache_dir=tmp_path / "cache"):
        said = refused(pair_folder)
    assert f"not to {tmp_path / 'cache' / 'native'} ([Errno 28] No space left on device" in said
    assert "Set GRISTMILL_CACHE_DIR" in said
    assert "Install" not in said


def test_a_missing_compiler_is_named(tmp_path, pair_folder, monkeypatch):
    monkeypatch.setenv("CC", str(tmp_path / "no-such-cc"))
    with settings.override(cache_dir=tmp_path / "cache"):
        said = refused(pair_folder)
    assert f"does not compile: {tmp_path / 'no-such-cc'} cannot be run: No such file" in said
    assert "Install a C compiler" in said


def test_a_module_of_ours_that_was_damaged_is_made_again(tmp_path, pair_folder):
    with settings.override(cache_dir=tmp_path / "cache"):
        aot.load(pair_folder)
        (made,) = (tmp_path / "cache" / "native").iterdir()
    file = tmp_path / "other" / "native" / made.name  # no file of a path that is loaded is read
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no library")
    file.chmod(0o700)
    with settings.override(cache_dir=tmp_path / "other"):
        assert "pair_add" in repr(aot.load(pair_folder))
    assert len(file.read_bytes()) > 10_000


def test_a_module_of_ours_that_cannot_be_loaded(tmp_path, pair_folder, monkeypatch):
    unloadable = 'while [ "$1" != -o ]; do shift; done; echo no library > "$2"'
    monkeypatch.setenv("CC", compiler(tmp_path / "odd", unloadable))
    with settings.override(cache_dir=tmp_path / "cache"):
        said = refused(pair_folder)
    (file,) = (tmp_path / "cache" / "native").iterdir()
    assert f"was compiled to {file}, and cannot be loaded from there: " in said
    assert "set GRISTMILL_CACHE_DIR to one where they may" in said
    assert "Remove" not in said


def test_an_edited_manifest_is_not_mended_by_removing_a_module(tmp_path, pair_folder):
    manifest = pair_folder / "manifest.json"
    text = manifest.read_text()
    edited = re.sub(r'"gristmill": "[^"]*"', '"gristmill": "7.7.7"', text)
    assert edited != text
    manifest.write_text(edited)
    with settings.override(cache_dir=tmp_path / "cache"):
        said = refused(pair_folder)
    assert f"the manifest in {pair_folder} is not the one that the artifact's C files were" in said
    assert said.endswith("it was changed. Build the artifact again.")
