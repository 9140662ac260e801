"""An artifact's Python module: what each sort of argument becomes, what wrong ones
say. In a process over the fake driver."""

from __future__ import annotations

import inspect
import struct
import sys
import threading

import aot_module_process as process
import pytest
from aot_module_process import BFLOAT16, FLOAT32, STREAM, Module

import aot_c_cases as cases

pytestmark = process.NEEDS

NO_SPECIALISATION, DRIVER_ERROR = 2, 5


@pytest.fixture(scope="session")
def folder(tmp_path_factory, flags):
    """An artifact with a kernel of each sort, and its module in `build`."""
    made = process.build(tmp_path_factory.mktemp("python") / "many", *cases.many())
    process.compiled(made, "many", *flags)
    return made


@pytest.fixture(scope="session")
def run(child, folder, tensors):
    """Runs a function in the process, with the artifact."""

    def run(function, *args, **more):
        return child.run(function, folder, tensors, *args, **more)

    return run


def raised(error, call, *args, **more):
    """The message of a call's error, and the error."""
    with pytest.raises(error) as caught:
        call(*args, **more)
    return str(caught.value), caught.value


# Each function below runs in the child.


def positions_and_names(folder, tensors):
    m = Module(folder, tensors)
    add = m.artifact.many_add
    x, y, out, *scalars = m.add_arguments()
    expected = [struct.pack("<Q", a) for a in (0x1000, 0x2000, 0x3000)]
    expected += [struct.pack("<i", 1024), struct.pack("<f", 1.5), bytes(8), bytes(8)]
    launch = m.ok("many_add", x, y, out, *scalars, 8, 3, 5, 6, 7, 0x99)
    assert launch.parameters == expected
    assert (list(launch.grid), launch.stream) == ([5, 6, 7], 0x99)
    assert list(launch.block) == [256, 1, 1]
    launch = m.ok("many_add", x, y, n=1024, out=out, BLOCK=64, alpha=1.5, num_warps=8, grid_x=9)
    assert launch.parameters == expected
    assert (list(launch.grid), launch.stream) == ([9, 1, 1], STREAM)
    launch = m.ok("many_add", x, y, out, *scalars)  # the specification's grid
    assert (list(launch.grid), list(launch.block)) == ([16, 1, 1], [128, 1, 1])
    launch = m.ok("many_add_tuned", x, y, out, 1000, 1.5)
    assert launch.parameters[:3] == expected[:3]
    assert list(launch.grid) == [16, 1, 1]
    assert "grid_y" in inspect.signature(add).parameters
    for given, named, message in [
        ([x], {}, "many_add needs `y`, which was not given"),
        ([x] * 13, {}, "takes at most 12 arguments; 13 were given"),
        ([x, y], {"x": x}, "was given 'x' twice"),
        ([x], {"blck": 3}, "has no argument 'blck'"),
    ]:
        assert message in raised(TypeError, add, *given, **named)[0]


def test_arguments_by_position_and_by_name(run):
    run(positions_and_names)


class Pointed:
    """An object with an address and a type."""

    def __init__(self, address, dtype, device=None):
        self._address, self.dtype = address, dtype
        if device is not None:
            self.__dlpack_device__ = lambda: device

    def data_ptr(self):
        return self._address


class Exporter:
    """An object with `__dlpack__` alone: another one's, on a device of its own saying."""

    def __init__(self, value, device):
        self._value, self._device = value, device
        self.streams = []

    def __dlpack_device__(self):
        return self._device

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        return self._value.__dlpack__()


def sorts_of_tensors(folder, tensors):
    import torch

    m = Module(folder, tensors)
    cpu = torch.zeros(8, dtype=torch.float16)
    address = struct.pack("<Q", cpu.data_ptr())
    exporter = Exporter(cpu, (2, 0))
    rest = (m.tensor(0x2000), m.tensor(0x3000), 1024, 1.5, 64)

    class OnGpu(torch.Tensor):
        __dlpack_c_exchange_api__ = m.tensors.wrap(torch.Tensor.__dlpack_c_exchange_api__)

    on_gpu = torch.zeros(8, dtype=torch.float16)
    launch = m.ok("many_add", on_gpu[3:].as_subclass(OnGpu), *rest)
    assert launch.parameters[0] == struct.pack("<Q", on_gpu.data_ptr() + 6)
    for dtype in ("fp16", "half", "float16", "torch.float16", torch.float16, 10):
        assert m.ok("many_add", (0x1000, dtype), *rest).parameters[0][:2] == b"\0\x10"
        assert m.ok("many_add", Pointed(0x1000, dtype), *rest).parameters[0][:2] == b"\0\x10"
    message = raised(ValueError, m.artifact.many_add, exporter, *rest)[0]
    assert "`x` is in the host's memory" in message  # as the capsule says, whatever the object does
    assert exporter.streams == [-1]
    assert m.ok("many_add", *[m.tensor(16)] * 3, 1024, 1.5, 64).stream == STREAM
    assert m.ok("many_add", Pointed(cpu.data_ptr(), "fp16", (2, 0)), *rest).parameters[0] == address


def test_sorts_of_tensors(run):
    run(sorts_of_tensors)


def wrong_tensors(folder, tensors):
    import torch

    m = Module(folder, tensors)
    add = m.artifact.many_add
    x, y, out, *rest = m.add_arguments()
    cpu = torch.zeros(8, dtype=torch.float16)
    for wrong, error, message in [
        (cpu, ValueError, "`x` is in the host's memory"),
        (Pointed(1, "fp16", (1, 0)), ValueError, "`x` is in the host's memory"),
        (m.tensor(1, device_type=4), ValueError, "`x` is on a device of DLPack's type 4"),
        (
            m.tensor(1, device_type=-1),
            TypeError,
            "no memory that a kernel could use: it is a ghost",
        ),
        (None, TypeError, "`x` is of type NoneType; it can be a tensor"),
        (0x1000, TypeError, "or an address with its type"),
        ("x", TypeError, "`x` is of type str"),
        ((1, "fp17"), TypeError, "`x` has the element type 'fp17', which is none"),
        (Pointed("1", "fp16"), TypeError, "an integer is required"),
        (m.tensor(1, (5, 64)), TypeError, "(5, 64 bits, 1 lanes), which Triton has not"),
    ]:
        assert message in raised(error, add, wrong, y, out, *rest)[0], message
    message, _ = raised(ValueError, add, x, m.tensor(1, device=1), out, *rest)
    assert "`y` is on device 1 and `x` on device 0" in message
    message, _ = raised(ValueError, add, *[m.tensor(16, device=1)] * 3, *rest)
    assert "`x` is on device 1, and the current device is 0. Make it current" in message
    message, _ = raised(ValueError, add, x, m.tensor(16, FLOAT32), out, *rest)
    assert "`y` has type fp32" in message
    message, _ = raised(TypeError, add, *[(16, "fp16")] * 3, *rest)
    assert "`stream` was left out, and no argument knows the current one" in message
    assert m.fake.fake_launches() == 0
    m.fake.fake_use(1)  # whose capability is 8.0
    on_one = [m.tensor(16, device=1)] * 3
    assert m.ok("many_add", *on_one, *rest).device == 1


def test_wrong_tensors_say_what_they_are(run):
    run(wrong_tensors)


def refused_calls(folder, tensors):
    m = Module(folder, tensors)
    add, error = m.artifact.many_add, m.artifact.Error
    x, y, out, *_ = m.add_arguments()
    message, why = raised(error, add, *m.add_arguments((2, 64)))
    assert "needs `T`, the type of `x`, `y` and `out`, to be fp16; it is fp64" in message
    for wrong, said in [
        (0, "`x` has type fp64 (code 13); as `y`, it must be fp16"),
        (1, "`y` has type fp64 (code 13); as `x`, it must be fp16"),
        (2, "`out` has type fp64 (code 13); as `x`, it must be fp16"),
    ]:
        given = m.add_arguments()
        given[wrong] = m.tensor(16, (2, 64))
        assert said in raised(ValueError, add, *given)[0]
    assert (why.status, isinstance(why, RuntimeError)) == (NO_SPECIALISATION, True)
    message, _ = raised(error, add, x, y, out, 1024, 1.5, 65)
    assert "The nearest (sm_90, T=fp16, BLOCK=64" in message
    assert "needs `BLOCK` to be 64; it is 65" in message
    assert "needs `num_warps`" in raised(error, add, x, y, out, 1, 1.0, 64, num_warps=7)[0]
    m.fake.fake_fail(b"cuLaunchKernelEx", 999, 0, 1)
    message, why = raised(error, add, *m.add_arguments())
    assert (why.status, "cuLaunchKernelEx failed with error 999" in message) == (DRIVER_ERROR, True)
    for wrong, kind, message in [
        ({"n": 1.5}, TypeError, "`n` is of type float; it can be an integer"),
        ({"n": 2**63}, ValueError, "`n` is 9223372036854775808; it takes integers of 64 bits"),
        ({"alpha": "a"}, TypeError, "`alpha` is of type str; it can be a number"),
        ({"num_warps": 2**40}, ValueError, "integers of 32 bits"),
        ({"grid_x": -1}, ValueError, "the grid is (-1, 1, 1)"),
        ({"BLOCK": -(2**63)}, ValueError, "which stands for None"),
        ({"stream": "s"}, TypeError, "`stream` is of type str; it can be a stream of torch"),
    ]:
        given = {"n": 1024, "alpha": 1.5, "BLOCK": 64} | wrong
        assert message in raised(kind, add, x, y, out, **given)[0]
    assert "needs `grid_x`" in raised(TypeError, m.artifact.clustered, m.tensor(16, FLOAT32))[0]
    assert m.ok("many_add", *m.add_arguments()).symbol == b"many_add"  # and goes on


def test_calls_that_cannot_be_served(run):
    run(refused_calls)


class Stream:
    def __init__(self, **given):
        self.__dict__.update(given)


def other_sorts_of_arguments(folder, tensors):
    m = Module(folder, tensors)
    x = m.tensor(0x40, FLOAT32)
    for numbers, form in [(("fp16"), "<e"), ("fp32", "<f"), ("fp64", "<d")]:
        given = 0.1, 0.1, 0.1, 0.1, (0.1, numbers), True, -3, 7
        launch = m.ok("scalars", *given, grid_x=1, stream=5)
        assert launch.parameters[4] == struct.pack(form, 0.1)
        assert launch.parameters[5:8] == [b"\1", b"\xfd", struct.pack("<I", 7)]
    assert m.ok("scalars", 1, 1, 1, 1, 1, 0, 1, 1, grid_x=1, stream=5).parameters[4] == (
        struct.pack("<f", 1)  # a number alone is fp32, as to the JIT
    )
    chosen = 3, True, 0.5, 'a "quoted" ??/ mode', "bfloat16"
    launch = m.ok("options", x, *chosen, 5, grid_x=1)
    assert launch.parameters[:2] == [struct.pack("<Q", 0x40), struct.pack("<i", 5)]
    absent = m.ok("options", None, None, False, None, None, None, 5, grid_x=1, stream=8)
    assert absent.parameters[0] == struct.pack("<i", 5)
    assert m.ok("options", 0x80, *chosen, 5, grid_x=1, stream=8).parameters[0][0] == 0x80
    message, _ = raised(TypeError, m.artifact.options, m.tensor(16), *chosen, 5, grid_x=1)
    assert "`p` is of type fp16; the kernel was compiled for fp32 there" in message
    message, _ = raised(TypeError, m.artifact.options, x, 3, True, 0.5, 7, "bf16", 5, grid_x=1)
    assert "`mode` is of type int; it can be a string or None" in message
    tensor = m.tensor(0x1000, shape=(128, 256), strides=(256, 1))
    launch = m.ok("tensors", tensor, 3, grid_x=1)
    assert launch.parameters[1:6] == [
        *(struct.pack("<i", n) for n in (128, 256)),
        *(struct.pack("<q", n) for n in (256, 1)),
        struct.pack("<i", 3),
    ]
    message, _ = raised(ValueError, m.artifact.tensors, m.tensor(16, shape=(4,)), 3, grid_x=1)
    assert "`t` has 1 dimensions; the kernel takes it with 2" in message
    for stream in (0x31, Stream(cuda_stream=0x31), Stream(__cuda_stream__=lambda: (0, 0x31))):
        assert m.ok("many_add", *m.add_arguments(), stream=stream).stream == 0x31
    message, _ = raised(TypeError, m.artifact.many_add, *m.add_arguments(BFLOAT16), stream=Stream())
    assert "`stream` is of type Stream" in message


def test_other_sorts_of_arguments(run):
    run(other_sorts_of_arguments)


def from_threads(folder, tensors):
    m = Module(folder, tensors)
    m.fake.fake_quiet(1)
    start, failures = threading.Barrier(8), []

    def call():
        start.wait()
        try:
            m.fake.fake_use(0)
            for _ in range(200):
                m.artifact.many_add(*m.add_arguments())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    held = sys.getrefcount(tensor := m.tensor(16))
    for _ in range(100):
        m.artifact.many_add(tensor, tensor, tensor, 16, 1.0, 64)
    assert sys.getrefcount(tensor) == held


def test_threads_and_references(run):
    run(from_threads)


def test_unknown_kernels_are_named(folder, tensors, child):
    child.run(unknown_kernels, folder, tensors)


def unknown_kernels(folder, tensors):
    m = Module(folder, tensors)
    message, _ = raised(AttributeError, getattr, m.artifact, "many_ad")
    assert "Did you mean 'many_add'" in message
    assert "'nothing'" in raised(KeyError, m.artifact.__getitem__, "nothing")[0]
    assert {"many_add", "many_add_tuned", "preload"} <= set(dir(m.artifact))
    m.artifact.preload(1)
    assert m.fake.fake_calls(b"cuLibraryLoadData") > 0
    message, error = raised(m.artifact.Error, m.artifact.preload)  # a kernel asks for too much
    assert (error.status, "300000 bytes of shared memory" in message) == (DRIVER_ERROR, True)


def preloaded_devices(folder, tensors):
    import torch

    m = Module(folder, tensors, device=1)  # of 8.0: its kernels ask for no more than it has
    preload = m.artifact.preload

    class Number:
        def __index__(self):
            return 1

    everywhere = (1, "cuda:1", "hip:1", torch.device("cuda:1"), torch.device("cuda", 1), Number())
    for device in (*everywhere, None, -1, "cuda", torch.device("cuda")):
        m.artifact.unload()
        before = m.fake.fake_calls(b"cuLibraryLoadData")
        preload(device)
        assert m.fake.fake_calls(b"cuLibraryLoadData") > before, device
    preload(device=1)
    assert "device=-1" in str(inspect.signature(preload))
    allowed = "it can be a device's number, -1 or None for the current one, or a device of torch's"
    for wrong, kind, message in [
        ("cpu", ValueError, "preload: `device` is 'cpu'; "),
        ("cuda:", ValueError, "`device` is 'cuda:'"),
        ("cuda:x", ValueError, "`device` is 'cuda:x'"),
        ("cuda:0x", ValueError, "`device` is 'cuda:0x'"),
        ("cuda:-1", ValueError, "`device` is 'cuda:-1'"),
        ("cuda1", ValueError, "`device` is 'cuda1'"),
        ("", ValueError, "`device` is ''"),
        (torch.device("cpu"), ValueError, "`device` is device(type='cpu')"),
        (-2, ValueError, "`device` is -2"),
        (2**32, ValueError, "`device` is 4294967296"),
        (2**70, ValueError, "`device` is 1180591620717411303424"),
        (True, TypeError, "`device` is of type bool"),
        (1.5, TypeError, "`device` is of type float"),
        (object(), TypeError, "`device` is of type object"),
    ]:
        said = raised(kind, preload, wrong)[0]
        assert message in said, said
        assert allowed in said, said


def test_devices_to_preload(run):
    run(preloaded_devices)
