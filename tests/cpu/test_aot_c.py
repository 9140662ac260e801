"""Artifacts in C, as files: what is written, that it is the same from anywhere, and manifests that
C's interface cannot have."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aot_c_cases as cases
from gristmill.aot.c_artifact import write
from gristmill.aot.c_grid import checked
from gristmill.aot.c_names import identifier, text
from gristmill.aot.manifest import Argument, Choice, KernelEntry, Manifest, Parameter, Slot
from gristmill.errors import ArtifactError
from gristmill.native import runtime


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_files_are_the_same_from_anywhere_and_name_no_place(tmp_path):
    first, second = tmp_path / "first", tmp_path / "elsewhere" / "second"
    name, entries = cases.many()
    for folder in (first, second):
        cases.lay_out(folder, name, entries)
    assert digests(first) == digests(second)
    for path in first.rglob("*"):
        if path.is_file() and path.parent.name != "kernels":
            said = path.read_text()
            assert str(tmp_path) not in said
            assert not re.search(r"[ \t]+$", said, re.MULTILINE), path
    manifest = cases.lay_out(tmp_path / "third", name, entries)
    headers = [f"gristmill/{header}" for header in runtime.HEADERS]
    own = ["CMakeLists.txt", "many-config.cmake", "many.c", "many.h", "many.pc"]
    assert write(manifest, tmp_path / "third") == sorted([*own, *headers])


@pytest.mark.skipif(not cases.HAS["gcc"], reason="needs gcc")
def test_objects_are_the_same_from_anywhere(tmp_path):
    made = []
    for place in ("a", "b/c"):
        folder = tmp_path / place
        cases.lay_out(folder, "pair", [cases.add_entry("pair_add")])
        out = folder / "pair.o"
        subprocess.run(
            ["gcc", "-std=c11", "-O1", "-c", "-I.", "pair.c", "-o", "pair.o"],
            cwd=folder,
            check=True,
        )
        made.append(out.read_bytes())
        assert str(tmp_path).encode() not in made[-1]
    assert made[0] == made[1]


def test_40_binaries_of_30_kb_take_less_than_2_mb(tmp_path):
    """A matmul's for sm_90 take 13 to 30 KB; everything that C needs beside them is counted."""
    entry, _ = cases.add_entry("matmul", archs=("sm_90",))
    binaries = []
    variants = []
    for i, variant in enumerate(entry.variants):
        binary = os.urandom(30_000) if i < 40 else binaries[i % 40]
        binaries.append(binary)
        variants.append(dataclasses.replace(variant, binary=hashlib.sha256(binary).hexdigest()))
    cases.lay_out(
        tmp_path, "mm", [(dataclasses.replace(entry, variants=tuple(variants)), binaries)]
    )
    assert len(list((tmp_path / "kernels").iterdir())) == 40
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 2_000_000


def test_codes_are_those_of_the_header_and_never_change():
    assert runtime.ELEMENTS["none"] == 0
    names = "none u1 i8 i16 i32 i64 u8 u16 u32 u64 fp16 bf16 fp32 fp64 fp8e4nv fp8e5"
    names += " fp8e4b8 fp8e5b16 fp8e4b15"
    assert {name: code for code, name in enumerate(names.split())} == runtime.ELEMENTS


def refused(tmp_path, entry, binaries=(), name="bad", message=""):
    with pytest.raises(ArtifactError, match=re.escape(message)):
        cases.lay_out(tmp_path, name, [(entry, list(binaries))])
    assert not list(tmp_path.glob("*.c")), "nothing is written by halves"


def test_names_that_c_cannot_have(tmp_path):
    entry, binaries = cases.launches_entry("kernel")
    for name in ("", "a-b", "1st", "int", "é", "_x"):
        refused(tmp_path, entry, binaries, name, f"the artifact is named {name!r}")
    refused(tmp_path, *cases.launches_entry("switch"), message="the kernel 'switch' cannot be")
    entry, binaries = cases.launches_entry("bad_preload")
    refused(tmp_path, entry, binaries, message="'bad_preload', which the artifact has")
    entry, binaries = cases.launches_entry("kernel")
    twice = [(entry, binaries)] * 2
    with pytest.raises(ArtifactError, match="which the kernel 'kernel' has"):
        cases.lay_out(tmp_path, "bad", twice)
    pair = (Parameter("int", "float", "fp32"), Parameter("int_", "float", "fp32"))
    made = cases.variant("kernel", pair, "sm_90", (), [Argument("fp32")] * 2)
    entry = KernelEntry("kernel", (), pair, (made[0],), "0" * 64)
    refused(tmp_path, entry, [made[1]], message="'int' and 'int_' are both 'int_' in C")


@pytest.mark.skipif(not cases.HAS["gcc"], reason="needs gcc")
def test_names_that_are_used_already_do_not_clash(tmp_path):
    names = ["twin_kernels", "int64_t", "GM_LOAD", "gristmill_pointer", "stream", "x", "entry", "ñ"]
    parameters = tuple(Parameter(name, "integer", "int") for name in names)
    arguments = [Argument("i32")] * len(names)
    entries = []
    for kernel in ("twin", "twin_kernels", "twin_entry"):
        made, binary = cases.variant(kernel, parameters, "sm_90", (), arguments)
        entry = KernelEntry(
            kernel, (), parameters, (made,), "0" * 64, ("cdiv(x, entry)", "int64_t")
        )
        entries.append((entry, [binary]))
    cases.lay_out(tmp_path, "twin", entries)
    cases.shared_library(tmp_path, "twin")


def test_manifests_that_c_cannot_have(tmp_path):
    entry, binaries = cases.launches_entry("kernel")
    (variant,) = entry.variants

    def changed(**fields):
        return dataclasses.replace(entry, variants=(dataclasses.replace(variant, **fields),))

    with pytest.raises(ArtifactError, match="No such file"):
        write(Manifest("bad", (changed(binary="f" * 64),), {}), tmp_path)
    unknown = (Slot("q", "pointer", 8), *cases.SCRATCH)
    refused(tmp_path, changed(slots=unknown), binaries, message="takes 'q', which is none of")
    wide = (Slot("p", "map", 128), *cases.SCRATCH)
    refused(tmp_path, changed(slots=wide), binaries, message="'p' (value) as map of 128 bytes")
    refused(tmp_path, changed(slots=wide * 90), binaries, message="takes 270 parameters")
    refused(
        tmp_path,
        changed(arch="gfx942", cluster=2),
        binaries,
        message="clusters of 2 blocks on gfx942",
    )
    tensor, tensors = cases.tensor_entry("kernel")
    first, second = tensor.variants
    outside = (dataclasses.replace(first.slots[1], index=2), *first.slots[2:])
    flat = (dataclasses.replace(first.descriptors[0], block=(64,)),)
    for fields, said in (
        ({"slots": outside}, "'t' (shape) as i32"),
        ({"descriptors": flat}, "(64,)"),
    ):
        broken = (dataclasses.replace(first, **fields), second)
        refused(tmp_path, dataclasses.replace(tensor, variants=broken), tensors, message=said)
    many = tuple(dataclasses.replace(variant, arch=f"sm_{80 + i}") for i in range(33))
    refused(
        tmp_path,
        dataclasses.replace(entry, variants=many),
        binaries * 33,
        message="33 architectures",
    )
    for grid, said in (
        (("p",), "`p` stands where"),
        (("cdiv(1)",), "`)` stands where `,` must"),
        (("1 +",), "the end stands where"),
        (("1", "1", "1", "1"), "has 4 dimensions"),
        (("system(1, 2)",), "`system` stands where"),
        (('1; "x"',), "`;` is none of these"),
        (("(" * 99 + "1" + ")" * 99,), "more than 64 levels"),
    ):
        refused(tmp_path, dataclasses.replace(entry, grid=grid), binaries, message=said)


def test_constexprs_that_c_cannot_have(tmp_path):
    def with_constexprs(type_, rows):
        parameters = tuple(Parameter(f"c{i}", "constexpr", type_) for i in range(len(rows[0])))
        made = [
            cases.variant("kernel", parameters, "sm_90", (), [cases.constexpr(v) for v in row])
            for row in rows
        ]
        variants = tuple(v for v, _ in made)
        return KernelEntry("kernel", (), parameters, variants, "0" * 64), [b for _, b in made]

    refused(tmp_path, *with_constexprs("int", [(1 << 63,)]), message="integers of 64 bits")
    refused(tmp_path, *with_constexprs("type", [("fp7",)]), message="no element type 'fp7'")
    refused(tmp_path, *with_constexprs("list", [(1,)]), message="has the type 'list'")
    rows = [tuple(range(i, i + 30)) for i in range(4)]
    refused(tmp_path, *with_constexprs("int", rows), message="take 90 bits to tell apart")
    parameters = (Parameter("n", "integer", "int"),)
    made = cases.variant("kernel", parameters, "sm_90", (), [cases.constexpr(7)])
    entry = KernelEntry("kernel", (), parameters, (made[0],), "0" * 64)
    refused(tmp_path, entry, [made[1]], message="has 7 for the integer 'n'; only 1")


def test_choices_that_no_variant_serves_are_left_out(tmp_path):
    entry, binaries = cases.add_entry("kernel")
    dead = [
        Choice("sm_100", (), (), {"BLOCK": 64}, 4, 3),
        Choice("sm_90", ("fp64",), (), {"BLOCK": 64}, 4, 3),
        Choice("sm_90", (), (), {"BLOCK": 32}, 4, 3),
        Choice("sm_90", (), (), {"BLOCK": 64}, 16, 3),
    ]
    cases.lay_out(tmp_path, "dead", [(dataclasses.replace(entry, choices=tuple(dead)), binaries)])
    assert "kernel_tuned" not in (tmp_path / "dead.h").read_text()
    assert "kernel_choices" not in (tmp_path / "dead.c").read_text()


def test_an_artifact_without_kernels_compiles(tmp_path):
    write(Manifest("empty", (), {}), tmp_path)
    if cases.HAS["gcc"]:
        cases.shared_library(tmp_path, "empty")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_text_is_a_literal_of_one_line(value):
    made = text(value)
    assert made.isascii()
    assert "\n" not in made
    assert "?" not in made  # a trigraph would begin with two
    back = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), made[1:-1])
    assert back.encode("latin-1").decode() == value


@given(st.text(min_size=1))
def test_any_name_is_an_identifier(value):
    assert re.fullmatch(r"\w+", identifier(value), re.ASCII)
    assert identifier(value) not in {"int", "stream", "template"}


def test_grids_read_as_c_reads_them():
    names = {"m": "m", "n": "n_", "num_ctas": "INT64_C(2)"}
    text_, used = checked("cdiv(m, 16) * (n - 1) % num_ctas", names)
    assert used == {"m", "n", "num_ctas"}
    product = "gm_mul(gm_cdiv(m, INT64_C(16), &gm_bad), gm_sub(n_, INT64_C(1), &gm_bad), &gm_bad)"
    assert text_ == f"gm_mod({product}, INT64_C(2), &gm_bad)"
    assert checked("((m) < (n) ? (m) : (n))", names)[0] == "(m < n_ ? m : n_)"
