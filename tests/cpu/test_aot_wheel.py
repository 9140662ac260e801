"""The project that installs operators in torch: built with CMake, run without Triton and gristmill.
Launches go to the fake driver."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import textwrap

import aot_module_process as process
import pytest

import aot_c_cases as cases
from aot_cases import EXAMPLES, module
from gristmill import aot
from gristmill.errors import ArtifactError, InvalidInputError
from gristmill.specs import rms_norm

pytestmark = [
    process.NEEDS,
    pytest.mark.skipif(not cases.HAS["g++"] or not cases.HAS["cmake"], reason="needs g++, CMake"),
]


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


# ---------------------------------------------------------------------------------- the project


CALLS = """
    import torch
    import fastnorms

    x, w = torch.ones(3, 4096, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
    try:
        fastnorms.rms_norm(x, w)
    except RuntimeError as error:
        assert "norms::rms_norm has kernels for sm_90 alone, and its arguments" in str(error)
        assert "rms_norm_cpu, csrc/torch_ops.cpp:" in str(error)  # and not where it was built
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
    assert names == "['alone_add', 'preload', 'rms_norm', 'silu_and_mul'"
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
    fastnorms.preload(0)
    loads = fake.fake_calls(b"cuLibraryLoadData")
    assert loads > 2
    for device in (0, None, -1, "cuda", "cuda:0", torch.device("cuda", 0), torch.tensor(0)):
        fastnorms.preload(device)
    for device, kind in [("cpu", ValueError), ("cuda:", ValueError), ("cuda:x", ValueError),
                         (-2, ValueError), (1 << 32, ValueError), (True, TypeError),
                         (1.5, TypeError), (torch.device("cpu"), ValueError)]:
        try:
            fastnorms.preload(device)
        except kind as error:
            assert "it can be a device's number, -1 or None for the current one" in str(error)
        else:
            raise AssertionError(device)
    try:
        torch.ops.norms.preload(1 << 32)
    except RuntimeError as error:
        assert "`device` is 4294967296; it can be a device's number" in str(error)
    else:
        raise AssertionError("it was cut to 32 bits")
    assert fake.fake_calls(b"cuLibraryLoadData") == loads
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
    def add(out, *more):
        return fastnorms.alone_add(x, x, out, 3 * 4096, 1.5, 64, *more)

    try:
        add(torch.empty_like(x))
    except RuntimeError as error:
        assert "needs `T`, the type of `x`, `y` and `out`, to be fp16; it is bf16" in str(error)
    x = x.half()
    assert add(torch.empty_like(x)) is None  # the grid is the specification's
    add(torch.empty_like(x), 8, 0, 5)
    assert fake.fake_launches() == 7
    def filled(out):
        add(out)
        return out + 1
    compiled = torch.compile(filled, backend="aot_eager", fullgraph=True)
    assert compiled(torch.zeros_like(x)).min() == 1
    assert fake.fake_launches() == 8
    assert fake.fake_calls(b"cuLibraryLoadData") == loads
    x = x.bfloat16()
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


# Macros and functions of torch 2.11, read in its headers: the torch of the tests is newer and has
# more, which `TORCH_TARGET_VERSION` hides only in part.
OF_THE_OLDEST = {
    *("STABLE_TORCH_LIBRARY_FRAGMENT", "STABLE_TORCH_LIBRARY_IMPL", "STD_TORCH_CHECK"),
    *("TORCH_BOX", "TORCH_ERROR_CODE_CHECK"),
    *("aoti_torch_device_type_cuda", "aoti_torch_empty_strided"),
    "aoti_torch_get_current_cuda_stream",
    *(f"aoti_torch_dtype_{name}" for name in ("bool", "bfloat16", "float16", "float32", "float64")),
    *(f"aoti_torch_dtype_{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *(f"aoti_torch_dtype_float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz")),
}


def test_the_sources_ask_for_nothing_that_the_oldest_torch_lacks(project):
    texts = [project / "csrc" / "torch_ops.cpp", project / "include" / "gristmill" / "torch_op.h"]
    asked = re.compile(r"\b(?:aoti_torch_\w+|(?:STABLE_|STD_)?TORCH_\w+)")
    used = {name for path in texts for name in asked.findall(path.read_text())}
    assert "TORCH_ERROR_CODE_CHECK" in used
    assert used <= OF_THE_OLDEST, "look these up in torch 2.11's headers, and add them"


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


def test_the_project_is_the_same_whoever_writes_it(norms, kernel_alone, project, tmp_path):
    other = aot.wheel(
        [norms, kernel_alone], tmp_path / "other", name="fastnorms", namespace="norms"
    )
    written = [
        {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        for folder in (project, other)
    ]
    assert written[0] == written[1]
    assert not any(str(tmp_path).encode() in content for content in written[1].values())


def test_the_example_writes_a_project(tmp_path, monkeypatch, capsys):
    make = module(EXAMPLES / "torch_ops" / "make.py", "make_torch_ops")
    few = functools.partial(aot.op_kernels, problems=[rms_norm.problem_of((16, 4096))])
    monkeypatch.setattr(aot, "op_kernels", few)
    out = str(tmp_path / "fastops")
    monkeypatch.setattr(sys, "argv", ["make.py", out, "--target", "sm_90", "--op", "rms_norm"])
    make.main()
    assert f"pip install {out}" in capsys.readouterr().out
    (binary, *_) = (tmp_path / "fastops" / "csrc" / "fastops_kernels" / "kernels").iterdir()
    assert binary.read_bytes()[:4] == b"\x7fELF"


def test_what_makes_no_project_is_refused(norms, tmp_path):
    for more, message in [
        ({"name": "a-b"}, "`name` is 'a-b'"),
        ({"name": "fast", "namespace": "class"}, "`namespace` is 'class'"),
        ({"name": "fast", "version": "one"}, "`version` is 'one'"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            aot.wheel(norms, tmp_path / "out", **more)
    with pytest.raises(InvalidInputError, match="`targets` is empty"):
        aot.wheel("rms_norm", tmp_path / "out", name="fast")
    with pytest.raises(InvalidInputError, match="nothing to make a project of"):
        aot.wheel([], tmp_path / "out", name="fast")
    with pytest.raises(ArtifactError, match="two artifacts are named 'norms'"):
        aot.wheel([norms, norms], tmp_path / "out", name="fast")
    with pytest.raises(ArtifactError, match="cannot be read"):
        aot.wheel(tmp_path / "nothing", tmp_path / "out", name="fast")
    plain = process.build(tmp_path / "pair", "pair", [cases.options_entry()])
    with pytest.raises(ArtifactError, match=r"`count` of 'options' \(constexpr, int\) is what no"):
        aot.wheel(plain, tmp_path / "out", name="fast")
    with pytest.raises(ArtifactError, match="which no build wrote"):
        aot.wheel(norms, tmp_path, name="fast")
    with pytest.raises(ArtifactError, match="is not empty"):
        aot.wheel(norms, plain, name="fast")
    (plain / "pair.c").write_text("")
    with pytest.raises(ArtifactError, match=r"pair\.c is missing or was changed"):
        aot.wheel(plain, tmp_path / "out", name="fast")
    assert not (tmp_path / "out").exists()
