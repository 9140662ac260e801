"""What the tests of artifacts in C share: manifests made by hand, whose binaries are text for the
fake driver of tests/data/aot; and compilers."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
from pathlib import Path

from gristmill.aot.c_artifact import write
from gristmill.aot.manifest import (
    Argument,
    Choice,
    Descriptor,
    KernelEntry,
    Manifest,
    Parameter,
    Slot,
    Usage,
    Variant,
)

DATA = Path(__file__).parent / "data" / "aot"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
SIZES = {"pointer": 8, "i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "map": 128}
SIZES |= {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}
SCRATCH = (Slot("global_scratch", "pointer", 8), Slot("profile_scratch", "pointer", 8))
NO_USAGE = Usage(None, None, 0, 0)
TOOLS = ("gcc", "g++", "clang", "nvcc", "cmake", "nm", "pkg-config")
HAS = {tool: shutil.which(tool) is not None for tool in TOOLS}


def slots_of(parameters, arguments):
    """The binary's parameters: what is no constexpr, then the two scratch pointers."""
    made = []
    for parameter, argument in zip(parameters, arguments, strict=True):
        if argument.type == "constexpr":
            continue
        type_ = argument.type
        if type_.startswith("*"):
            type_ = "pointer"
        elif type_[0] in "iu":
            type_ = f"i{type_[1:]}"
        made.append(Slot(parameter.name, type_, SIZES[type_]))
    return (*made, *SCRATCH)


def variant(entry_name, parameters, arch, types, arguments, **more):
    """A variant, and its binary: unique text that begins with the fake driver's line."""
    arguments = tuple(arguments)
    slots = more.pop("slots", None) or slots_of(parameters, arguments)
    shared = more.pop("shared", 0)
    scratch_align = more.pop("scratch_align", 1)
    label = hashlib.sha256(f"{arch} {types} {arguments} {more}".encode()).hexdigest()
    sizes = " ".join(str(slot.size) for slot in slots)
    binary = f"FAKE {entry_name} {sizes}\n# {label}\n\0".encode()
    options = {"num_warps": 4, "num_stages": 3, "threads": 128, "cluster": 1} | more
    options = {"cooperative": False, "pdl": False, "scratch_bytes": 0} | options
    made = Variant(
        arch=arch,
        types=tuple(types),
        arguments=arguments,
        options={},
        binary=hashlib.sha256(binary).hexdigest(),
        symbol=entry_name,
        scratch_align=scratch_align,
        slots=tuple(slots),
        usage=Usage(None, None, shared, len(binary)),
        **options,
    )
    return made, binary


def pointer(type_, divisible=True):
    return Argument(f"*{type_}", divisible)


def constexpr(value):
    return Argument("constexpr", value=value)


ONE, NULL = constexpr(1), constexpr(None)


def add_entry(name, archs=("sm_80", "sm_90"), choices=True):
    """x, y, out of type T; n divisible by 16 and 32 bits, one, 32 bits, or any; alpha; BLOCK."""
    parameters = (
        Parameter("x", "pointer", "T"),
        Parameter("y", "pointer", "T"),
        Parameter("out", "pointer", "T"),
        Parameter("n", "integer", "int"),
        Parameter("alpha", "float", "fp32"),
        Parameter("BLOCK", "constexpr", "int"),
    )
    sizes = (Argument("i32", True), ONE, Argument("i32"), Argument("i64"))
    made = []
    for arch, type_, block, warps in itertools.product(archs, ("fp16", "fp32"), (64, 128), (4, 8)):
        for aligned, n in ((True, sizes[0]), (True, sizes[1]), *((False, n) for n in sizes)):
            arguments = [pointer(type_, aligned)] * 3
            arguments += [n, Argument("fp32"), constexpr(block)]
            more = {"num_warps": warps, "threads": 32 * warps}
            made.append(variant(name, parameters, arch, (type_,), arguments, **more))
    small = Choice("sm_90", ("fp16",), (("n", 0, 1000),), {"BLOCK": 64}, 8, 3)
    large = Choice("sm_90", (), (), {"BLOCK": 128}, 8, 3)
    entry = KernelEntry(
        name,
        (("T", ("fp16", "fp32")),),
        parameters,
        tuple(v for v, _ in made),
        "0" * 64,
        ("cdiv(n, BLOCK)",),
        (small, large) if choices else (),
    )
    return entry, [binary for _, binary in made]


def scalars_entry():
    """Every scalar: floats by type, a float of a variable's type, integers by width, a bool."""
    kinds = [("h", "float", "fp16"), ("b", "float", "bf16"), ("f", "float", "fp32")]
    kinds += [("d", "float", "fp64"), ("s", "float", "S")]
    kinds += [("flag", "integer", "bool"), ("i8", "integer", "int"), ("u32", "integer", "int")]
    parameters = tuple(Parameter(*kind) for kind in kinds)
    made = []
    for type_ in ("fp16", "fp32", "fp64"):
        types = ["fp16", "bf16", "fp32", "fp64", type_, "u1", "i8", "u32"]
        arguments = [Argument(t) for t in types]
        made.append(variant("scalars", parameters, "sm_90", (type_,), arguments))
    variables = (("S", ("fp16", "fp32", "fp64")),)
    entry = KernelEntry("scalars", variables, parameters, tuple(v for v, _ in made), "0" * 64)
    return entry, [binary for _, binary in made]


def options_entry():
    """An optional pointer of fixed type, and constexprs of every type, None among them."""
    parameters = (
        Parameter("p", "pointer", "fp32", optional=True),
        Parameter("count", "constexpr", "int"),
        Parameter("on", "constexpr", "bool"),
        Parameter("rate", "constexpr", "float"),
        Parameter("mode", "constexpr", "str"),
        Parameter("kind", "constexpr", "type"),
        Parameter("double", "integer", "int"),  # a word of C
    )
    made = []
    values = [(3, True, 0.5, 'a "quoted" ??/ mode', "bf16"), (None, False, None, None, None)]
    for p, chosen in itertools.product((pointer("fp32"), pointer("fp32", False), NULL), values):
        arguments = [p, *map(constexpr, chosen), Argument("i32")]
        made.append(variant("options", parameters, "sm_90", (), arguments))
    entry = KernelEntry("options", (), parameters, tuple(v for v, _ in made), "0" * 64)
    return entry, [binary for _, binary in made]


def launches_entry(name, arch="sm_90", **more):
    """A kernel of one pointer, launched in a special way."""
    parameters = (Parameter("p", "pointer", "fp32"),)
    made, binary = variant(name, parameters, arch, (), [pointer("fp32", False)], **more)
    return KernelEntry(name, (), parameters, (made,), "0" * 64), [binary]


def tensor_entry(name="tensors", fp4_padded=False):
    """A tensor of two dimensions: encoded on the host for sm_90, taken apart for sm_80."""
    parameters = (Parameter("t", "descriptor", "T", rank=2), Parameter("k", "integer", "int"))
    arguments = [Argument("tensordesc<fp16[64,32]>"), Argument("i32")]
    extents = [Slot("t", "i32", 4, "shape", i) for i in range(2)]
    extents += [Slot("t", "i64", 8, "stride", i) for i in range(2)]
    encoded = [Slot("t", "map", 128, "map"), *extents, Slot("k", "i32", 4), *SCRATCH]
    apart = [Slot("t", "pointer", 8), *(Slot("t", "i64", 8, "shape", i) for i in range(2))]
    apart += [*(Slot("t", "i64", 8, "stride", i) for i in range(2)), Slot("t", "i1", 1)]
    apart += [*extents, Slot("k", "i32", 4), *SCRATCH]
    plan = Descriptor("t", (64, 32), 2, 6, 3, fp4_padded)
    on_90 = {"slots": encoded, "descriptors": (plan,)}
    made = [
        variant(name, parameters, "sm_90", ("fp16",), arguments, **on_90),
        variant(name, parameters, "sm_80", ("fp16",), arguments, slots=apart),
    ]
    variants = tuple(v for v, _ in made)
    entry = KernelEntry(name, (("T", ("fp16",)),), parameters, variants, "0" * 64)
    return entry, [binary for _, binary in made]


def wide_entry():
    """More than 64 conditions: masks of two words."""
    names = [f"n{i}" for i in range(40)]
    parameters = tuple(Parameter(name, "integer", "int") for name in names)
    every = [Argument("i32", True)] * 40
    last = [*[Argument("i32")] * 39, Argument("i32", True)]
    rest = [Argument("i32")] * 40
    made = [variant("wide", parameters, "sm_90", (), row) for row in (every, last, rest)]
    entry = KernelEntry("wide", (), parameters, tuple(v for v, _ in made), "0" * 64)
    return entry, [binary for _, binary in made]


def grids_entry():
    """A grid of three expressions, with an operand that may be zero."""
    parameters = (
        Parameter("m", "integer", "int"),
        Parameter("n", "integer", "int"),
        Parameter("B", "constexpr", "int"),
    )
    made, binary = variant(
        "grids", parameters, "sm_90", (), [Argument("i64"), Argument("i64"), constexpr(16)]
    )
    grid = ("cdiv(m, B) * num_warps", "max(m / n, 2) + m % n", "min(m - n, 7)")
    return KernelEntry("grids", (), parameters, (made,), "0" * 64, grid), [binary]


def many():
    """An artifact with a kernel of each sort."""
    return (
        "many",
        [
            add_entry("many_add"),
            scalars_entry(),
            options_entry(),
            launches_entry("clustered", cluster=16, pdl=True, shared=100_000, threads=384),
            launches_entry("together", cooperative=True),
            launches_entry("hungry", cluster=2, scratch_bytes=96, scratch_align=128),
            launches_entry("aligned", scratch_bytes=100, scratch_align=4096),
            launches_entry("greedy", shared=300_000),
            tensor_entry(),
            tensor_entry("nibbles", fp4_padded=True),
            wide_entry(),
            grids_entry(),
        ],
    )


def amd():
    """An artifact for AMD's devices alone."""
    hungry = launches_entry("hungry", "gfx942", scratch_bytes=64, scratch_align=16)
    together = launches_entry("together", "gfx942", cooperative=True)
    return "amd", [add_entry("amd_add", ("gfx942", "gfx1100"), choices=False), hungry, together]


def lay_out(folder, name, entries):
    """Writes an artifact; returns the manifest."""
    folder = Path(folder)
    (folder / "kernels").mkdir(parents=True, exist_ok=True)
    for entry, binaries in entries:
        for made, binary in zip(entry.variants, binaries, strict=True):
            suffix = "hsaco" if made.arch.startswith("gfx") else "cubin"
            (folder / "kernels" / f"{made.binary}.{suffix}").write_bytes(binary)
    manifest = Manifest(name, tuple(entry for entry, _ in entries), {"gristmill": "0.1.0"})
    write(manifest, folder)
    return manifest


def compiled(*command):
    """Runs a compiler; its messages are the failure's."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def shared_library(folder, name, *flags):
    """An artifact as a shared library, as its CMake file makes it."""
    out = folder / f"lib{name}.so"
    flags = [*WARNINGS, "-O2", "-fPIC", "-shared", "-fvisibility=hidden", *flags]
    compiled("gcc", "-std=c11", *flags, f"-I{folder}", folder / f"{name}.c", "-o", out)
    return out


def fake_driver(folder, *flags, hip=False):
    """The fake driver, in a folder for LD_LIBRARY_PATH."""
    out = folder / ("libamdhip64.so" if hip else "libcuda.so.1")
    flags = [*flags, *(["-DFAKE_HIP"] if hip else [])]
    source = DATA / "fake_driver.c"
    compiled("gcc", "-std=gnu11", "-g", *flags, "-fPIC", "-shared", source, "-o", out, "-lpthread")
    return out


def child_environment(folder):
    """The environment of a process whose driver is the fake one."""
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}


def sanitizer(name):
    """The file of a sanitizer's runtime, or of another of gcc's, or None where gcc has none."""
    if not HAS["gcc"]:
        return None
    command = ["gcc", f"-print-file-name=lib{name}.so"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return path if Path(path).is_absolute() else None
