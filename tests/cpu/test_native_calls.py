"""The C module behind bound calls: keys, programs on a fake driver, what it leaves to Python."""

from __future__ import annotations

import contextlib
import ctypes
import struct
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gristmill.native.calls import calls

HOOKS = SimpleNamespace(launch_enter_hook=SimpleNamespace(calls=[]), launch_exit_hook=None)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The fake driver, compiled."""
    path = tmp_path_factory.mktemp("driver") / "libfake.so"
    source = Path(__file__).parents[1] / "data" / "fake_driver.c"
    command = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, str(source), "-o", str(path)], check=True)
    return path


@pytest.fixture
def driver(library):
    """The fake driver, open and reset."""
    hooks = (HOOKS, "launch_enter_hook", HOOKS, "launch_exit_hook")
    calls().open_driver(str(library), hooks)
    fake = ctypes.CDLL(str(library))
    for name in ("launches", "failure", "encodings", "parameters"):
        ctypes.c_int.in_dll(fake, name).value = 0
    return fake


def number(fake, name, kind=ctypes.c_int):
    return kind.in_dll(fake, name).value


def received(fake, *sizes):
    """Say how long each parameter is, or give the bytes of the last launch's."""
    array = (ctypes.c_int * 64).in_dll(fake, "sizes")
    array[: len(sizes)] = sizes
    ctypes.c_int.in_dll(fake, "parameters").value = len(sizes)
    data = (ctypes.c_ubyte * 65536).in_dll(fake, "bytes")
    return lambda: bytes(data[: sum(sizes)])


def launch(image=bytes(8), offsets=(0,), patches=(), maps=(), **facts):
    """A launch as `Program` takes it."""
    known = {"function": 7, "grid": (4, 2, 1), "threads": 128, "shared": 0, "cluster": 1}
    known |= {"cooperative": False, "overlap": False, **facts}
    return (*known.values(), image, offsets, patches, maps)


LIKE = (torch.empty_like, (None,), None, 0)


def program(*launches, arguments=2, outputs=1, makers=(LIKE,)):
    return calls().Program(arguments, outputs, makers, launches, None)


# ------------------------------------------------------------------------------------------ keys


def variants():
    """Calls of one table, each of another key; the first is added."""
    x = torch.randn(4, 8)
    yield (x, 1.0)
    yield (torch.randn(5, 8), 1.0)
    yield (torch.randn(8, 4).t(), 1.0)
    yield (torch.randn(4, 8, dtype=torch.float64), 1.0)
    yield (torch.randn(4, 8).half(), 1.0)
    yield (torch.randn(4, 8).bfloat16(), 1.0)
    yield (torch.randn(33)[1:].view(4, 8), 1.0)
    yield (torch.randn(1, 4, 8), 1.0)
    yield (x, 2.0)
    yield (x, 1)
    yield (x, True)
    yield (x, None)
    yield (x, torch.float32)
    yield (x, "1.0")


def test_every_fact_of_a_key_tells_calls_apart():
    table, MISS = calls().Table(), calls().MISS
    all_calls = list(variants())
    for index, args in enumerate(all_calls):
        assert table(*args) is MISS
        assert table.add(args, lambda *a, index=index: index)
    assert len(table) == len(all_calls)
    assert [table(*args) for args in all_calls] == list(range(len(all_calls)))


def test_other_tensors_of_one_key_are_one_call():
    table = calls().Table()
    table.add((torch.empty(4, 8), 0.5), lambda x, s: (x, s))
    x = torch.randn(4, 8)
    assert table(x, 0.5)[0] is x
    weight = torch.nn.Parameter(torch.randn(4, 8), requires_grad=False)
    assert table(weight, 0.5)[0] is weight  # the same memory to a kernel
    table.add((torch.empty(4, 8), 0.5), lambda x, s: "newer")
    assert table(x, 0.5) == "newer"
    assert len(table) == 1


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(4).as_subclass(Subclass),
        torch.randn(4, dtype=torch.complex64).conj().imag,
        torch.empty(4, device="meta"),
        torch.randn(4, 4).to_sparse(),
        torch._efficientzerotensor((4,)),
        torch.randn(4, dtype=torch.complex64),
        [1, 2],
        1 << 70,
        object(),
    ],
    ids=["subclass", "negated", "meta", "sparse", "zeros", "complex", "list", "huge", "object"],
)
def test_what_has_no_key_is_left_to_python(value):
    table = calls().Table()
    x = torch.randn(4)
    assert not table.add((x, value), lambda *a: 1)
    table.add((x, 1.0), lambda *a: 1)
    assert table(x, value) is calls().MISS
    assert table(value, 1.0) is calls().MISS


def test_arguments_by_name_and_in_other_numbers_are_left_to_python():
    table, x = calls().Table(), torch.randn(4)
    table.add((x, 1.0), lambda *a: 1)
    for args, kwargs in (((x,), {}), ((x, 1.0, 1.0), {}), ((), {}), ((x,), {"eps": 1.0})):
        assert table(*args, **kwargs) is calls().MISS
    assert table(*(x,) * 40) is calls().MISS


def test_a_gradient_is_left_to_python():
    x = torch.randn(4)
    needs = torch.randn(4, requires_grad=True)
    direct, values = calls().Table(), calls().Table(checked=False)
    for table in (direct, values):
        table.add((x,), lambda a: 1)
    with torch.enable_grad():
        assert direct(needs) is calls().MISS
        assert direct(x) == values(x) == values(needs) == 1
    with torch.no_grad():
        assert direct(needs) == 1
    with torch.inference_mode():
        assert direct(torch.randn(4)) == 1


class Mode(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class FunctionMode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def autocast(device):
    """As `torch.autocast`, which warns where there is no such device."""
    torch.set_autocast_enabled(device, True)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, False)


@pytest.mark.parametrize(
    "mode",
    [
        Mode,
        FunctionMode,
        lambda: autocast("cpu"),
        lambda: autocast("cuda"),
        lambda: torch.device("cpu"),
    ],
    ids=["dispatch", "function", "autocast", "autocast-cuda", "device"],
)
def test_a_mode_is_left_to_python(mode):
    x = torch.randn(4)
    direct, values = calls().Table(), calls().Table(checked=False)
    for table in (direct, values):
        table.add((x,), lambda a: 1)
    with mode():
        assert direct(x) is calls().MISS
        assert values(x) == 1
    assert direct(x) == 1


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_transforms_and_traces_are_left_to_python():
    x = torch.randn(3, 4)
    table = calls().Table()
    table.add((x,), lambda a: a)
    seen = []

    def inside(row):
        seen.append(table(x) is calls().MISS)
        return row * 2

    torch.vmap(inside)(x)
    torch.func.grad(lambda a: inside(a).sum())(x)
    torch.jit.trace(inside, (x,), check_trace=False)
    assert seen == [True, True, True]
    assert table(x) is x


# -------------------------------------------------------------------------------------- programs


def test_a_program_allocates_launches_and_returns(driver):
    read = received(driver, 8, 8, 4, 8)
    image = bytes(16) + struct.pack("<f", 1.5) + bytes(12)
    packed = launch(image, (0, 8, 16, 24), ((0, 0), (8, 1), (24, 2)), shared=99)
    table, x, w = calls().Table(), torch.randn(4, 8), torch.randn(8)
    table.add((x, w), program(packed))
    out = table(x, w)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    pointers = (x.data_ptr(), w.data_ptr(), 1.5, out.data_ptr())
    assert struct.unpack("<QQfQ", read()) == pointers
    facts = (ctypes.c_uint * 32).in_dll(driver, "facts")
    assert list(facts[:8]) == [4, 2, 1, 128, 1, 1, 99, 0]
    assert number(driver, "function_of_last", ctypes.c_uint64) == 7


def test_attributes_of_a_launch(driver):
    table, x = calls().Table(), torch.randn(4)
    table.add((x,), program(launch(cluster=2, cooperative=True, overlap=True), arguments=1))
    table(x)
    facts = (ctypes.c_uint * 32).in_dll(driver, "facts")
    ids = (ctypes.c_int * 8).in_dll(driver, "attribute_ids")
    assert list(facts[:3]) == [8, 2, 1]  # blocks, not clusters
    assert dict(zip(ids[: facts[7]], facts[8 : 8 + facts[7]], strict=True)) == {
        6: 1,
        2: 1,
        4: 2,
        5: 1,
    }


def test_several_outputs_launches_and_workspace(driver):
    read = received(driver, 8, 8)
    makers = (
        LIKE,
        (torch.Tensor.new_empty, (None, (3,)), None, 0),
        (torch.empty, ((5,), torch.int8, torch.device("cpu")), ("dtype", "device"), -1),
    )
    one = launch(bytes(16), (0, 8), ((0, 2), (8, 3)))
    table, x = calls().Table(), torch.randn(4)
    made = program(launch(), one, arguments=1, outputs=2, makers=makers)
    received(driver, 8)
    table.add((x,), made)
    first, second = table(x)
    assert (first.shape, second.shape) == ((4,), (3,))
    assert number(driver, "launches") == 2
    received(driver, 8, 8)
    assert struct.unpack("<QQ", read())[0] != 0


def test_outputs_that_the_caller_gives(driver):
    read = received(driver, 8, 8)
    packed = launch(bytes(16), (0, 8), ((0, 0), (8, 1)))
    module = calls()
    table, x, out = module.Table(), torch.randn(4, 8), torch.empty(4, 8)
    table.add((x, out), module.Program(2, 0, (), (packed,), None, 1))
    assert table(x, out) is out
    assert struct.unpack("<QQ", read()) == (x.data_ptr(), out.data_ptr())
    both = torch.empty(60)
    shifted = both[8:40].view(4, 8)
    assert table(both[:32].view(4, 8), shifted) is module.MISS  # the output is an input too
    assert table(out, out) is module.MISS
    assert table(both[:32].view(4, 8), both[28:].view(4, 8)) is module.MISS
    assert number(driver, "launches") == 1
    two = module.Table()
    made = ((torch.empty, ((5,),), None, -1),)
    two.add((x, out, x), module.Program(3, 0, made, (packed,), None, 2))
    first, second = torch.empty(4, 8), torch.empty(4, 8)
    assert two(x, first, second) == (first, second)
    needs = torch.randn(4, 8, requires_grad=True)
    assert table(needs, out) is module.MISS
    for arguments, outputs, given in ((2, 1, 1), (2, 0, 0), (2, 0, 3), (2, 0, -1)):
        with pytest.raises(ValueError, match="more tensors"):
            module.Program(arguments, outputs, (LIKE,), (packed,), None, given)


def test_descriptors_are_encoded_once_an_address(driver):
    read = received(driver, 128, 8)
    described = (0, 0, 6, 3, 0, (64, 32), (1024, 512), (2048, 1 << 20))
    packed = launch(bytes(136), (0, 128), ((128, 1),), (described,))
    table, x = calls().Table(), torch.randn(8, 8)
    table.add((x,), program(packed, arguments=1))
    first, second = torch.randn(8, 8), torch.randn(8, 8)
    for tensor in (first, second, first, second):
        table(tensor)
        terms = struct.unpack("<14Q", read()[: 14 * 8])
        assert terms == (6, 2, tensor.data_ptr(), 1024, 512, 2048, 64, 32, 1, 1, 0, 3, 2, 0)
    assert number(driver, "encodings") == 2


def test_what_the_driver_refuses_is_an_error_and_the_next_call_works(driver):
    table, x = calls().Table(), torch.randn(4)
    table.add((x,), program(launch(), arguments=1))
    ctypes.c_int.in_dll(driver, "failure").value = 719
    with pytest.raises(RuntimeError, match=r"CUDA_ERROR_LAUNCH_FAILED .unspecified launch"):
        table(x)
    ctypes.c_int.in_dll(driver, "failure").value = 3
    with pytest.raises(RuntimeError, match="unknown error"):
        table(x)
    ctypes.c_int.in_dll(driver, "failure").value = 0
    assert table(x).shape == x.shape


def test_an_allocation_that_fails_is_an_error(driver):
    def out_of_memory(*args):
        raise torch.OutOfMemoryError("no room")

    table, x = calls().Table(), torch.randn(4)
    makers = (LIKE, (out_of_memory, (), None, -1))
    table.add((x,), program(launch(), arguments=1, makers=makers))
    with pytest.raises(torch.OutOfMemoryError):
        table(x)
    assert number(driver, "launches") == 0


def test_launch_hooks_are_left_to_python(driver):
    table, x = calls().Table(), torch.randn(4)
    table.add((x,), program(launch(), arguments=1))
    HOOKS.launch_enter_hook.calls.append(print)
    try:
        assert table(x) is calls().MISS
    finally:
        HOOKS.launch_enter_hook.calls.clear()
    assert table(x) is not calls().MISS
    assert number(driver, "launches") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": bytes(5000)},
        {"offsets": tuple(range(200))},
        {"patches": ((0, 9),)},
        {"maps": ((0, 0, 6, 3, 0, (64,), (1024, 512), (2048, 1)),)},
        {"maps": ((0, 77, 6, 3, 0, (64,), (1024,), (2048,)),)},
    ],
)
def test_a_launch_that_does_not_fit_is_refused(driver, wrong):
    with pytest.raises(ValueError, match=r"launch has more|differ in rank"):
        program(launch(**wrong))


def test_threads_call_add_and_clear(driver):
    table = calls().Table()
    run = program(launch(), arguments=1)
    faults = []

    def work(seed):
        try:
            for n in range(300):
                x = torch.empty(1 + (n * seed) % 40)
                out = table(x)
                if out is calls().MISS:
                    table.add((x,), run)
                elif out.shape != x.shape:
                    faults.append(out.shape)
                if n % 100 == 99:
                    table.clear()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 3, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
