"""Operators of an artifact as C functions, and the project that installs them in torch: built with
CMake, run without Triton and gristmill. Launches go to the fake driver."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import struct
import subprocess
import sys
import textwrap

import aot_module_process as process
import aot_op_cases as op_cases
import pytest
from aot_op_cases import Operand, Plan

import aot_c_cases as cases
from aot_c_process import Launch
from gristmill import aot
from gristmill.aot.row_choice import value
from gristmill.errors import ArtifactError, InvalidInputError

pytestmark = [
    process.NEEDS,
    pytest.mark.skipif(not cases.HAS["g++"] or not cases.HAS["cmake"], reason="needs g++, CMake"),
]
NO_SPECIALISATION, NO_ARCHITECTURE = 2, 3


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """An artifact with two operators, whose binaries are the fake driver's."""
    folder = tmp_path_factory.mktemp("artifact") / "norms"
    op_cases.write(folder)
    return folder


@pytest.fixture(scope="module")
def project(artifact, tmp_path_factory):
    """The project of that artifact."""
    out = tmp_path_factory.mktemp("project") / "fastnorms"
    return aot.wheel(artifact, out, name="fastnorms", namespace="norms")


@pytest.fixture(scope="module")
def library(project, tmp_path_factory):
    """Its C functions."""
    out = tmp_path_factory.mktemp("library") / "libnorms_ops.so"
    flags = [*cases.WARNINGS, "-O2", "-fPIC", "-shared", f"-I{project}/include"]
    folder = project / "csrc" / "norms"
    cases.compiled("gcc", "-std=c11", *flags, f"-I{folder}", folder / "norms_ops.c", "-o", out)
    return out


def built(project, build):
    """The project's package, built with CMake, in a folder to import from."""
    more = ["-G", "Ninja"] if shutil.which("ninja") else []
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    cases.compiled("cmake", "-S", project, "-B", build, python, "-DCMAKE_BUILD_TYPE=Debug", *more)
    cases.compiled("cmake", "--build", build)
    package = build / "python" / "fastnorms"
    shutil.copytree(project / "python" / "fastnorms", package)
    shutil.copy(build / "_C.abi3.so", package)
    return package.parent


def run(program, folder, drivers):
    """Runs a program that has torch and the package, and neither Triton nor gristmill."""
    blocked = "import sys\nsys.modules['triton'] = sys.modules['gristmill'] = None\n"
    environment = cases.child_environment(drivers) | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-W", "error", "-c", blocked + textwrap.dedent(program)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ------------------------------------------------------------------------------- C's functions


def names_of(form, given):
    """What the names of expressions stand for."""
    found = {}
    for argument, one in zip(form.arguments, given, strict=True):
        if argument.kind == "tensor":
            found[f"{argument.name}_address"] = one[1]
            for d, (size, stride) in enumerate(zip(one[2], one[3], strict=True)):
                found[f"{argument.name}_size_{d}"], found[f"{argument.name}_stride_{d}"] = (
                    size,
                    stride,
                )
    return found


def expected_bytes(kernel, launch, names, tensors, floats):
    """What the binary is passed, by the manifest: of the arguments that it may have as they are."""
    made = []
    for parameter, given in zip(kernel.parameters, launch.arguments, strict=True):
        if given.kind == "tensor":
            made.append(struct.pack("<Q", tensors[given.source]))
        elif given.kind == "scalar":
            made.append(struct.pack("<f", floats[given.source]))
        elif given.kind == "integer" or (given.kind == "constant" and parameter.kind == "integer"):
            number = value(given.source, names) if given.kind == "integer" else given.value
            made.append(struct.pack("<q", number))
    return made


def calls_agree(path, folder, op, forms):
    """Every call's row, outputs and launches, against the manifest read in Python."""
    c, fake = ctypes.CDLL(str(path)), ctypes.CDLL("libcuda.so.1")
    fake.fake_launch.restype = ctypes.POINTER(Launch)
    fake.fake_reset()
    fake.fake_use(0)
    manifest = aot.read_manifest(folder)
    (function,) = (f for f in manifest.functions if f.name == op)
    kernels = {kernel.name: kernel for kernel in manifest.kernels}
    rows = [row for form in function.forms for row in form.rows]
    for number, given in forms:
        form = function.forms[number]
        operands = (Operand * 8)(*map(Operand.of, given))
        plan, names = Plan(), names_of(form, given)
        status = getattr(c, f"norms_{op}_plan")(operands, ctypes.byref(plan))
        row = aot.row_of(form, "sm_90", names)
        c.norms_last_error.restype = ctypes.c_char_p
        assert status == (0 if row else NO_SPECIALISATION), (given, c.norms_last_error())
        if row is None:
            continue
        assert rows[plan.row] == row, given
        made = [*form.outputs, *row.workspace]
        assert (plan.outputs, plan.workspaces) == (len(form.outputs), len(row.workspace))
        tensors = {
            a.name: g[1] for a, g in zip(form.arguments, given, strict=True) if a.kind == "tensor"
        }
        floats = {
            a.name: g for a, g in zip(form.arguments, given, strict=True) if a.kind == "scalar"
        }
        for i, tensor in enumerate(made):
            operand = operands[len(given) + i]
            parts = (tensor.sizes, tensor.strides)
            assert operand.shape() == tuple(tuple(value(e, names) for e in p) for p in parts)
            operand.data = tensors[tensor.name] = 0x100000 * (i + 1)
        before = fake.fake_launches()
        assert getattr(c, f"norms_{op}_run")(operands, ctypes.byref(plan), ctypes.c_void_p(7)) == 0
        grids = [[value(e, names) for e in launch.grid] for launch in row.launches]
        real = [one for one in zip(row.launches, grids, strict=True) if 0 not in one[1]]
        assert fake.fake_launches() == before + len(real)
        for i, (launch, grid) in enumerate(real):
            seen = fake.fake_launch(before + i).contents
            assert (seen.symbol.decode(), list(seen.grid), seen.stream) == (launch.kernel, grid, 7)
            left = iter(expected_bytes(kernels[launch.kernel], launch, names, tensors, floats))
            for passed in seen.parameters[
                :-2
            ]:  # each is the next, or the one after what is compiled in
                assert any(passed == whole[: len(passed)] for whole in left), (given, launch)


def tensor(shape, strides=None, type_="bf16", address=0x10000):
    """A tensor: (element type, address, sizes, strides)."""
    made, step = [], 1
    for size in reversed(shape):
        made.insert(0, step)
        step *= max(size, 1)
    return type_, address, shape, strides or tuple(made)


def test_c_functions_do_what_the_manifest_says(child, artifact, library):
    weight = tensor((4096,), address=0x80000)
    short = tensor((128,), address=0x80000)
    norms = [(0, (tensor((m, 4096)), weight, 1e-5)) for m in (0, 1, 2, 15, 16, 17, 4095, 70_000)]
    norms += [
        (0, (tensor((33, 4096), (9000, 1)), weight, 1e-6)),  # rows apart
        (0, (tensor((33, 4096), address=0x10008), weight, 1e-6)),  # at no multiple of 16
        (0, (tensor((33, 4096), (1, 33)), weight, 1e-6)),  # transposed: no row
        (0, (tensor((33, 4097)), tensor((4097,)), 1e-6)),  # another weight: no row
        *((1, (tensor(shape), short, 1e-6)) for shape in ((1, 1, 128), (4, 40, 128), (9, 1, 128))),
    ]
    child.run(calls_agree, library, artifact, "rms_norm", norms)
    up = tensor((5, 1536), address=0x90000)
    halves = [(0, (tensor((m, 3072)), None)) for m in (0, 1, 16, 5000)]
    halves += [(0, (tensor((5, 3072), (4000, 1)), None)), (1, (tensor((5, 1536)), up))]
    child.run(calls_agree, library, artifact, "silu_and_mul", halves)


def refused(path):
    c, fake = ctypes.CDLL(str(path)), ctypes.CDLL("libcuda.so.1")
    c.norms_last_error.restype = ctypes.c_char_p
    fake.fake_reset()
    fake.fake_use(0)

    def plan(*given):
        operands = (Operand * 8)(*map(Operand.of, given))
        return c.norms_rms_norm_plan(operands, ctypes.byref(Plan())), c.norms_last_error().decode()

    weight = tensor((4096,))
    status, message = plan(tensor((3, 4096), type_="fp64"), weight, 1e-6)
    assert (status, "types (fp64[3, 4096], bf16[4096], -)" in message) == (NO_SPECIALISATION, True)
    assert "there are (x: bf16, 2 dimensions, weight: bf16, 1 dimension, eps: a number)" in message
    status, message = plan(tensor((3, 4097)), weight, 1e-6)
    assert (status, "the nearest need `x_size_1 == 4096`" in message) == (NO_SPECIALISATION, True)
    operands = (Operand * 8)(*map(Operand.of, (tensor((3, 4096)), weight, 1e-6)))
    assert c.norms_rms_norm_run(operands, ctypes.byref(Plan(row=9999)), None) == 1
    assert "the plan's row is 9999" in c.norms_last_error().decode()
    fake.fake_use(1)  # whose capability is 8.0
    status, message = plan(tensor((3, 4096)), weight, 1e-6)
    assert status == NO_ARCHITECTURE
    fake.fake_use(0)


def test_calls_that_nothing_was_compiled_for(child, library):
    child.run(refused, library)


# ---------------------------------------------------------------------------------- the project


CALLS = """
    import torch
    import fastnorms

    x, w = torch.ones(3, 4096, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
    try:
        fastnorms.rms_norm(x, w)
    except RuntimeError as error:
        assert "norms::rms_norm has kernels for sm_90 alone, and its arguments" in str(error)
    else:
        raise AssertionError("it ran")
    meta = torch.ops.norms.rms_norm(x.to("meta"), w.to("meta"))
    assert (meta.shape, meta.dtype, meta.stride()) == (x.shape, x.dtype, x.stride())
    packed = torch.empty(5, 3072, dtype=torch.bfloat16, device="meta")
    assert fastnorms.silu_and_mul(packed).shape == (5, 1536)
    try:
        fastnorms.rms_norm(x.to("meta").double(), None)
    except RuntimeError as error:
        assert "compiled for arguments of these types (torch.float64[3, 4096], None" in str(error)
    else:
        raise AssertionError("it has a shape")

    graphs = []
    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda x, w: fastnorms.rms_norm(x, w) + 1, backend=backend, fullgraph=True, dynamic=True
    )
    for rows in (5, 6, 4000):
        x = torch.empty(rows, 4096, dtype=torch.bfloat16, device="meta")
        assert compiled(x, w.to("meta")).shape == (rows, 4096)
    assert len(graphs) == 1
    print(sorted(fastnorms.__all__), torch.ops.norms.rms_norm.default._schema)
"""


def test_the_project_builds_and_serves_torch(project, tmp_path, drivers):
    shown = run(CALLS, built(project, tmp_path / "build"), drivers)
    names, _, schema = shown.partition("] ")
    assert names == "['rms_norm', 'silu_and_mul'"
    assert schema.startswith("norms::rms_norm(Tensor x, Tensor? weight=None, float eps=")


# The kernels that run on CUDA's tensors, on the CPU's: what asks torch for a GPU is answered here.
AS_IF_ON_A_GPU = """
extern "C" AOTITorchError as_if_guard(int32_t, DeviceGuardHandle *guard) {
    *guard = nullptr;
    return 0;
}
extern "C" AOTITorchError as_if_release(DeviceGuardHandle) { return 0; }
extern "C" AOTITorchError as_if_stream(int32_t, void **stream) {
    *stream = (void *)0x77;
    return 0;
}
extern "C" AOTITorchError as_if_index(AtenTensorHandle, int32_t *index) {
    *index = 0;
    return 0;
}

"""
ANSWERED = {
    "aoti_torch_device_type_cuda": "aoti_torch_device_type_cpu",
    "aoti_torch_create_device_guard": "as_if_guard",
    "aoti_torch_delete_device_guard": "as_if_release",
    "aoti_torch_get_current_cuda_stream": "as_if_stream",
    "aoti_torch_get_device_index": "as_if_index",
}

GPU_CALLS = """
    import ctypes
    import torch
    import fastnorms

    fake = ctypes.CDLL("libcuda.so.1")
    fake.fake_use(0)
    x, w = torch.ones(3, 4096, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
    out = fastnorms.rms_norm(x, w, 1e-5)
    assert (out.shape, out.dtype, out.stride()) == (x.shape, x.dtype, x.stride())
    assert fake.fake_launches() == 1
    apart = torch.ones(3, 8192, dtype=torch.bfloat16)[:, ::2]  # no kernel takes its stride: copied
    assert fastnorms.rms_norm(apart, w).shape == (3, 4096)
    assert fake.fake_launches() == 2
    assert fastnorms.rms_norm(x[:0], w).shape == (0, 4096)
    assert fake.fake_launches() == 2
    assert fastnorms.silu_and_mul(torch.ones(5, 3072, dtype=torch.bfloat16)).shape == (5, 1536)
    assert fastnorms.silu_and_mul(x[:, :1536], x[:, 1536:3072]).shape == (3, 1536)
    compiled = torch.compile(fastnorms.silu_and_mul, backend="aot_eager", fullgraph=True)
    assert compiled(torch.ones(7, 3072, dtype=torch.bfloat16)).shape == (7, 1536)
    assert fake.fake_launches() == 5
    for wrong, message in [
        ((x.float(), w), "compiled for arguments of these types (fp32[3, 4096], bf16[4096], -)"),
        ((torch.ones(3, 64, dtype=torch.bfloat16), w), "no kernels for these sizes (bf16[3, 64]"),
    ]:
        try:
            fastnorms.rms_norm(*wrong)
        except RuntimeError as error:
            assert message in str(error), error
        else:
            raise AssertionError(wrong)
    fake.fake_fail(b"cuLaunchKernelEx", 999, 0, 1)
    try:
        fastnorms.rms_norm(x, w)
    except RuntimeError as error:
        assert "cuLaunchKernelEx failed with error 999" in str(error)
    print("served")
"""


def test_the_kernels_for_gpus_launch_and_allocate(project, tmp_path, drivers):
    copy = shutil.copytree(project, tmp_path / "project")
    source = copy / "csrc" / "torch_ops.cpp"
    text = source.read_text()
    text = re.sub(
        r"STABLE_TORCH_LIBRARY_IMPL\(norms, CPU, library\) \{.*?\n\}\n", "", text, flags=re.DOTALL
    )
    text = text.replace("IMPL(norms, CUDA,", "IMPL(norms, CPU,")
    defined = "".join(f"#define {real} {answer}\n" for real, answer in ANSWERED.items())
    source.write_text(f"{defined}{text.replace('namespace {', AS_IF_ON_A_GPU + 'namespace {', 1)}")
    assert run(GPU_CALLS, built(copy, tmp_path / "build"), drivers) == "served\n"


@pytest.mark.skipif(
    importlib.util.find_spec("scikit_build_core") is None, reason="needs scikit-build-core"
)
def test_pip_installs_the_project(project, tmp_path, drivers):
    copy = shutil.copytree(project, tmp_path / "project")
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    cases.compiled(sys.executable, "-m", "pip", "wheel", *options, "-w", tmp_path, copy)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("fastnorms-0.1.0-cp310-abi3-")
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    run(CALLS, tmp_path / "installed", drivers)


def test_the_project_is_the_same_whoever_writes_it(artifact, project, tmp_path):
    other = aot.wheel([artifact], tmp_path / "other", name="fastnorms", namespace="norms")
    written = [
        {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        for folder in (project, other)
    ]
    assert written[0] == written[1]
    assert not any(str(tmp_path).encode() in content for content in written[1].values())


def test_what_makes_no_project_is_refused(artifact, tmp_path):
    for more, message in [
        ({"name": "a-b"}, "`name` is 'a-b'"),
        ({"name": "fast", "namespace": "class"}, "`namespace` is 'class'"),
        ({"name": "fast", "version": "one"}, "`version` is 'one'"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            aot.wheel(artifact, tmp_path / "out", **more)
    with pytest.raises(InvalidInputError, match="`targets` is empty"):
        aot.wheel("rms_norm", tmp_path / "out", name="fast")
    with pytest.raises(InvalidInputError, match="nothing to make a project of"):
        aot.wheel([], tmp_path / "out", name="fast")
    with pytest.raises(ArtifactError, match="two artifacts are named 'norms'"):
        aot.wheel([artifact, artifact], tmp_path / "out", name="fast")
    with pytest.raises(ArtifactError, match="cannot be read"):
        aot.wheel(tmp_path / "nothing", tmp_path / "out", name="fast")
    plain = process.build(tmp_path / "pair", "pair", [cases.add_entry("pair_add")])
    with pytest.raises(ArtifactError, match="has no operators"):
        aot.wheel(plain, tmp_path / "out", name="fast")
    with pytest.raises(ArtifactError, match="which no build wrote"):
        aot.wheel(artifact, tmp_path, name="fast")
    with pytest.raises(ArtifactError, match="is not empty"):
        aot.wheel(artifact, plain, name="fast")
    (plain / "pair.c").write_text("")
    with pytest.raises(ArtifactError, match=r"pair\.c is missing or was changed"):
        aot.wheel(plain, tmp_path / "out", name="fast")
    assert not (tmp_path / "out").exists()
