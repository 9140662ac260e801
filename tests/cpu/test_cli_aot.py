"""`gristmill aot`: build, inspect, verify, diff; and what binaries say of themselves."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aot_cases import EXAMPLES
from gristmill import aot
from gristmill.aot.binaries import parameter_sizes
from gristmill.aot.inspection import binary_file, changes, faults
from gristmill.aot.manifest import MANIFEST_FILE
from gristmill.aot.manifest_json import to_text
from gristmill.cli.app import app
from gristmill.errors import ArtifactError

SPEC = """
from gristmill import aot
from kernel import add_kernel

_private = aot.Kernel(add_kernel, "left_out")
SIZES = [64]
p = aot.Ptr("fp16")
kernel = aot.Kernel(add_kernel).spec(
    x_ptr=p, y_ptr=p, out_ptr=p, n_elements=aot.Int([None], widths=[32]), BLOCK_SIZE=SIZES
).tie("x_ptr", "y_ptr", "out_ptr")
more = [kernel]
"""


@pytest.fixture
def run():
    """Run the command line in this process."""

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, ["aot", *map(str, arguments)], env={"COLUMNS": "160"})
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return run


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A specification beside the kernel that it imports."""
    folder = tmp_path_factory.mktemp("spec")
    shutil.copy(EXAMPLES / "vector_add" / "kernel.py", folder)
    (folder / "spec.py").write_text(SPEC)
    return folder / "spec.py"


@pytest.fixture(scope="module")
def built(spec, tmp_path_factory):
    """An artifact, and what the build said."""
    place = tmp_path_factory.mktemp("built") / "add"
    arguments = ["build", spec, "-t", "sm_90", "-t", "gfx942", "--out", place, "--json"]
    result = CliRunner().invoke(app, ["aot", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return place, json.loads(result.stdout)


@pytest.fixture
def copy(built, tmp_path):
    """The artifact, to be broken."""
    return Path(shutil.copytree(built[0], tmp_path / "add"))


def change(folder, **entry_fields):
    """Write another manifest."""
    manifest = aot.read_manifest(folder)
    (entry,) = manifest.kernels
    other = dataclasses.replace(entry, **entry_fields)
    changed = dataclasses.replace(manifest, kernels=(other,))
    (folder / MANIFEST_FILE).write_text(to_text(changed))
    return changed


def test_build_says_what_it_made(built):
    place, said = built
    assert said["kernels"] == ["add_kernel"]
    assert said["variants"] == 4
    assert said["failures"] == []
    assert set(said["size_bytes"]) == {"sm_90", "gfx942"}
    assert (place / "add.h").is_file()


def test_build_takes_a_name_where_the_folder_has_none(spec, run, tmp_path):
    place = tmp_path / "add-90.1"
    given = ("build", spec, "-t", "sm_90", "--out", place)
    said = " ".join(run(*given, code=2).output.split())
    assert "the artifact's name is 'add-90.1'" in said
    assert "on the command line a `--name`" in said
    more = spec.with_name("chosen.py")  # with a choice for what it is not built for
    more.write_text(f'{SPEC}more = [kernel := kernel.choose("gfx942", BLOCK_SIZE=64)]\n')
    with pytest.warns(aot.UnusedChoiceWarning, match="choices for gfx942, and is compiled for sm"):
        made = run("build", more, *given[2:], "--name", "add_all", "--json").stdout
    made = json.loads(made)
    assert (made["name"], (place / "add_all.h").is_file()) == ("add_all", True)
    assert aot.read_manifest(place).name == "add_all"


def test_inspect_shows_every_specialisation(built, run):
    place, said = built
    shown = json.loads(run("inspect", place, "--json").stdout)
    assert len(shown["variants"]) == said["variants"]
    for row in shown["variants"]:
        assert row["registers"] > 0
        assert row["spill_bytes"] == 0
        assert (place / row["file"]).stat().st_size == row["size_bytes"]
    text = run("inspect", place, "--arch", "gfx942").stdout
    assert "gfx942" in text
    assert "BLOCK_SIZE=64" in text
    assert "sm_90 x_ptr" not in text
    assert "'sm_80'; " in run("inspect", place, "--arch", "sm_80", code=2).output


def test_inspect_and_verify_need_no_triton(built):
    code = f"""
import sys
sys.modules["triton"] = None
from typer.testing import CliRunner
from gristmill.cli.app import app
for command in ("inspect", "verify"):
    result = CliRunner().invoke(app, ["aot", command, {str(built[0])!r}])
    assert result.exit_code == 0, (result.output, result.exception)
"""
    source = str(Path(__file__).parents[2] / "src")
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": source}
    )


def test_verify_finds_nothing_wrong_with_what_was_built(built, run):
    assert "as they were built" in run("verify", built[0]).stdout
    assert json.loads(run("verify", built[0] / MANIFEST_FILE, "--json").stdout)["ok"]


def test_verify_finds_files_that_are_missing_or_changed(copy, run):
    (copy / "add.h").unlink()
    (copy / "add.c").write_text("int x;")
    found = json.loads(run("verify", copy, "--json", code=1).stdout)["faults"]
    assert found == ["add.c is missing or changed", "add.h is missing or changed"]


def test_verify_finds_parameters_and_kernels_that_a_binary_does_not_have(copy, run):
    manifest = aot.read_manifest(copy)
    first, second, *_ = manifest.kernels[0].variants
    slots = (dataclasses.replace(first.slots[0], size=4), *first.slots[1:])
    change(
        copy,
        variants=(
            dataclasses.replace(first, slots=slots),
            dataclasses.replace(second, symbol="other"),
        ),
    )
    output = run("verify", copy, code=1).output
    assert "takes parameters of [8, 8, 8, 4, 8, 8] bytes" in output
    assert "has no kernel other; it has add_kernel" in output


def test_verify_of_a_binary_of_another_kind(copy):
    manifest = aot.read_manifest(copy)
    variant = manifest.kernels[0].variants[0]
    whole = (copy / binary_file(variant)).read_bytes()
    for data in (b"no ELF", whole[:80], whole[: len(whole) // 2], whole[:64] + bytes(len(whole))):
        (copy / binary_file(variant)).write_bytes(data)
        found = faults(copy, manifest)
        assert any("is no binary" in fault or "has no kernel" in fault for fault in found), found


def test_a_binary_cut_off_or_with_flipped_bytes_is_refused_or_read(built):
    place, _ = built
    for variant in aot.read_manifest(place).kernels[0].variants[::2]:
        whole = (place / binary_file(variant)).read_bytes()
        assert list(parameter_sizes(whole)) == ["add_kernel"]
        for at in range(0, len(whole), 37):
            for broken in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
                try:
                    parameter_sizes(broken)
                except ArtifactError as error:
                    assert str(error)  # noqa: PT017 - either is right


def test_diff_shows_what_was_added_removed_and_changed(built, copy, run):
    place, _ = built
    assert "the same kernels" in run("diff", place, copy).stdout
    first, second, third, fourth = aot.read_manifest(place).kernels[0].variants
    usage = dataclasses.replace(second.usage, registers=99, size_bytes=5)
    change(
        copy,
        grid=("n_elements",),
        variants=(
            dataclasses.replace(first, num_warps=8),
            dataclasses.replace(second, binary="f" * 64, usage=usage),
            third,
            fourth,
        ),
    )
    said = json.loads(run("diff", place, copy, "--json", code=1).stdout)
    kinds = sorted((c["kind"], c["what"]) for c in said["changes"])
    assert kinds == [
        ("added", "variant"),
        ("changed", "grid"),
        ("changed", "variant"),
        ("removed", "variant"),
    ]
    (changed,) = (c for c in said["changes"] if (c["kind"], c["what"]) == ("changed", "variant"))
    assert changed["after"] == 5
    assert "registers" in changed["detail"]
    assert "num_warps=8" in run("diff", place, copy, code=1).stdout
    other = dataclasses.replace(aot.read_manifest(place), kernels=(), tools={"triton": "0"})
    found = {(c.kind, c.what, c.name) for c in changes(aot.read_manifest(place), other)}
    assert ("removed", "kernel", "add_kernel") in found
    assert ("changed", "tool", "triton") in found


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("x = 1", ("-t", "sm_90"), "has no kernel"),
        (SPEC, (), "no architecture is named"),
        (SPEC, ("-t", "sm_1"), "'sm_1'"),
        ("import nothing_like_it", ("-t", "sm_90"), "raised ModuleNotFoundError"),
        ("x = (", ("-t", "sm_90"), "raised SyntaxError"),
    ],
)
def test_build_of_a_specification_that_is_none(spec, tmp_path, run, text, arguments, message):
    file = tmp_path / "spec.py"
    file.write_text(text)
    shutil.copy(spec.parent / "kernel.py", tmp_path)
    assert message in " ".join(run("build", file, *arguments, code=2).output.split())


def test_paths_that_hold_nothing(tmp_path, run):
    assert "there is no file" in run("build", tmp_path / "no.py", "-t", "sm_90", code=2).output
    for command in ("inspect", "verify"):
        assert "cannot be read" in run(command, tmp_path, code=1).output
    (tmp_path / MANIFEST_FILE).write_text('{"schema": 99}')
    assert "schema version 99" in run("inspect", tmp_path, code=1).output


def test_what_does_not_compile_is_said_and_the_rest_is_written(tmp_path, run):
    (tmp_path / "kernels_here.py").write_text(
        "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"
        "def picky(x, N: tl.constexpr):\n"
        "    tl.static_assert(N != 3, 'three is too many')\n"
        "    tl.store(x, N)\n"
    )
    (tmp_path / "spec.py").write_text(
        "from gristmill import aot\nfrom kernels_here import picky\nTARGETS = ['sm_90']\n"
        "k = aot.Kernel(picky).spec(x=aot.Ptr('i32', align=[1]), N=[2, 3])\n"
    )
    arguments = ("build", tmp_path / "spec.py", "-o", tmp_path / "out")
    said = json.loads(run(*arguments, "--json", code=1).stdout)
    (failure,) = said["failures"]
    assert "N=3" in failure["specialisation"]
    assert said["variants"] == 1
    assert "three is too many" in run(*arguments, code=1).output
    run("verify", tmp_path / "out")


def test_wheel_writes_a_project_of_operators(tmp_path, run):
    folder, file = tmp_path / "norms", tmp_path / "spec.py"
    file.write_text(
        "from gristmill import aot\nfrom gristmill.specs.rms_norm import problem_of\n"
        "OPS = aot.op_kernels('rms_norm', 'sm_90', problems=[problem_of((64, 512))])\n"
        "TARGETS = 'sm_90'\n"
    )
    said = json.loads(run("build", file, "-o", folder, "--json").stdout)
    assert said["operators"] == ["rms_norm"]
    shown = json.loads(run("inspect", folder, "--json").stdout)
    assert shown["operators"]["rms_norm"] >= 2
    assert "operator rms_norm: " in run("inspect", folder).stdout
    place = tmp_path / "project"
    said = json.loads(run("wheel", folder, "--name", "norms", "-o", place, "--json").stdout)
    assert {"pyproject.toml", "CMakeLists.txt"} <= set(said["files"])
    arguments = ("--name", "norms", "-o", tmp_path / "other")
    assert "targets" in run("wheel", "rms_norm", *arguments, code=2).output
    assert "cannot be read" in run("wheel", tmp_path / "nothing", *arguments, code=1).output
    assert "rms_norm" in run("wheel", "rmsnorm", "-t", "sm_90", *arguments, code=2).output
    assert not (tmp_path / "other").exists()


def test_verify_holds_the_manifest_against_what_was_built(copy, run):
    manifest = aot.read_manifest(copy)
    (entry,) = manifest.kernels
    change(copy, variants=(dataclasses.replace(entry.variants[0], num_warps=2),))
    found = json.loads(run("verify", copy, "--json", code=1).stdout)["faults"]
    assert found == [
        "manifest.json is not the one that was built: its digest is not that in add_module.c"
    ]
    files = {n: d for n, d in manifest.files.items() if n != "add_module.c"}
    (copy / MANIFEST_FILE).write_text(to_text(dataclasses.replace(manifest, files=files)))
    (copy / "add_module.c").unlink()
    assert "cannot be held against add_module.c" in run("verify", copy, code=1).output


@pytest.mark.parametrize("command", ["inspect", "verify", "diff"])
def test_a_manifest_whose_lists_disagree_is_damaged(command, built, copy, run):
    (entry,) = aot.read_manifest(copy).kernels
    first, *rest = entry.variants
    change(copy, variants=(dataclasses.replace(first, arguments=first.arguments[1:]), *rest))
    more = [built[0]] if command == "diff" else []
    output = run(command, copy, *more, code=1).output
    count = len(entry.parameters)
    assert (
        f"variant 0 of the kernel 'add_kernel': arguments are {count - 1} in place of {count}"
        in (" ".join(output.split()))
    )
