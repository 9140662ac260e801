"""The generated launch function, against a fake driver: which argument goes where, hooks,
descriptors, and what is kept."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

from gristmill.compile import bound, hot
from gristmill.core.launch import Launch, TensorMap
from gristmill.core.registry import implementation
from gristmill.core.target import device_target
from gristmill.errors import CompileError

DEVICE = torch.device("cuda", 0)


class Run:
    """Stands for `CompiledKernel.run`: records how it was called."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args):
        self.calls.append(args)


@pytest.fixture(autouse=True)
def _stream(monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 77, raising=False)


def _launch(*args, **constexprs):
    names = [f"a{i}" for i in range(len(args))] + list(constexprs)
    return Launch(SimpleNamespace(arg_names=names), (3, 2), args, constexprs, {"num_warps": 4})


def _kernel(run):
    return SimpleNamespace(
        run=run,
        function="function",
        packed_metadata="packed",
        launch_metadata=lambda grid, stream, *values: ("metadata", grid, stream, values),
    )


def test_addresses_scalars_and_constexprs_go_to_their_places():
    x, w, out = torch.empty(4), torch.empty(4), torch.empty(4)
    run = Run()
    launch = _launch(x, 5, w, None, out, 0.5, BLOCK=64, FLAG=True)
    bound = hot.bind_launch(launch, _kernel(run), [w, x, out], DEVICE)
    bound(100, 200, 300)
    bound(101, 201, 301)
    head = (3, 2, 1, 77, "function", "packed", None, None, None)
    assert run.calls == [
        (*head, 200, 5, 100, None, 300, 0.5, 64, True),
        (*head, 201, 5, 101, None, 301, 0.5, 64, True),
    ]


def test_launch_hooks_are_called_with_metadata(monkeypatch):
    x, run = torch.empty(4), Run()
    bound = hot.bind_launch(_launch(x, BLOCK=64), _kernel(run), [x], DEVICE)
    hook = SimpleNamespace(calls=[print])
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", hook)
    bound(100)
    metadata = ("metadata", (3, 2, 1), 77, (100, 64))
    leave = knobs.runtime.launch_exit_hook
    assert run.calls == [
        (3, 2, 1, 77, "function", "packed", metadata, hook, leave, 100, 64),
    ]


def test_descriptors_are_made_once_an_address_and_forgotten_in_time():
    x, run = torch.empty(64, 64), Run()
    tensor_map = TensorMap(x, (64, 64), (64, 1), (16, 32))
    bound = hot.bind_launch(_launch(tensor_map), _kernel(run), [x], DEVICE)
    for address in (160, 320, 160):
        bound(address)
    first, second, third = (call[-1] for call in run.calls)
    assert first is third
    assert first is not second
    assert (first.base.data_ptr(), first.shape, first.block_shape) == (160, [64, 64], [16, 32])
    for turn in range(2 * hot.MAX_DESCRIPTORS):
        bound(16 * turn)
    bound(160)
    assert run.calls[-1][-1].base.data_ptr() == 160


def test_hooks_are_given_descriptors(monkeypatch):
    x, y, run = torch.empty(64, 64), torch.empty(8), Run()
    tensor_map = TensorMap(x, (64, 64), (64, 1), (16, 32))
    bound = hot.bind_launch(_launch(y, tensor_map, 7), _kernel(run), [x, y], DEVICE)
    hook = SimpleNamespace(calls=[print])
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", hook)
    bound(160, 16)
    (call,) = run.calls
    described = call[-2]
    assert isinstance(described, TensorDescriptor)
    assert call[6] == ("metadata", (3, 2, 1), 77, (16, described, 7))


def test_no_tensor_is_kept_alive():
    x, y = torch.empty(64, 64), torch.empty(8)
    launch = _launch(TensorMap(x, (64, 64), (64, 1), (16, 32)), y, 3)
    bound = hot.bind_launch(launch, _kernel(Run()), [x, y], DEVICE)
    alive = [weakref.ref(x), weakref.ref(y)]
    del x, y, launch
    gc.collect()
    assert [r() for r in alive] == [None, None]
    bound(160, 320)


def test_a_tensor_that_a_launcher_made_itself_is_refused():
    x = torch.empty(4)
    with pytest.raises(CompileError, match="neither an argument, an output nor workspace"):
        hot.bind_launch(_launch(x.view(2, 2)), _kernel(Run()), [x], DEVICE)


@pytest.mark.parametrize("past_the_dispatcher", [True, False])
@pytest.mark.parametrize("name", ["rms_norm/row", "matmul/split_k"])
def test_a_bound_call_allocates_what_the_op_declares_on_the_current_device(
    name, past_the_dispatcher, monkeypatch
):
    """Both ways to allocate; in both, after the device is the tensors' own."""
    impl = implementation(*name.split("/"))
    problem = impl.op.sized(dict(zip(impl.op.axis_names, (16, 64, 256), strict=False)), "bfloat16")
    values = problem.empty(torch.device("cpu"))
    config = impl.config(None, problem, device_target(torch.device("cpu")))
    launched, current = [], [0]

    class Guard:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *_):
            current.pop()

    def load(launches, device):
        return [(launch, None) for launch in launches]

    def bind_launch(launch, kernel, slots, device):
        return lambda *addresses: launched.append((current[-1], len(slots), addresses))

    monkeypatch.setattr(bound, "EXECUTOR", SimpleNamespace(load=load))
    monkeypatch.setattr(bound, "bind_launch", bind_launch)
    monkeypatch.setattr(bound, "program", lambda *launched: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", Guard)
    if not past_the_dispatcher:
        monkeypatch.setattr(bound, "_empty_strided", lambda device: None)
    call = bound.bind(impl, config, values)
    (spec,) = impl.op.outputs(problem)
    for _ in range(2):  # the CPU's index is `None`: another device is current
        out = call(*values)
        assert (out.shape, out.stride(), out.dtype) == (spec.shape, spec.strides, spec.torch_dtype)
        assert not out.is_inference()
        place, slots, addresses = launched[-1]
        assert place is None
        assert len(addresses) == slots
        assert out.data_ptr() in addresses
    with torch.inference_mode():
        assert call(*values).is_inference()
