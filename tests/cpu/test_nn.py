"""The modules: torch's arguments and state dicts, training, copies, and what people wrap around
modules."""

from __future__ import annotations

import copy
import socket

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gristmill as gm
from gristmill import nn

pytestmark = pytest.mark.usefixtures("fresh_store")


def test_rms_norm_is_torchs_with_the_same_state():
    theirs, ours = torch.nn.RMSNorm(32, eps=1e-5), nn.RMSNorm(32, eps=1e-5)
    torch.nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 32, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    upstream = torch.randn_like(x)
    torch.testing.assert_close(
        torch.autograd.grad(ours(x), (x, ours.weight), upstream),
        torch.autograd.grad(theirs(x), (x, theirs.weight), upstream),
    )
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_without_weight_or_epsilon(dtype):
    x = torch.randn(4, 32, dtype=dtype)
    theirs, ours = (m.RMSNorm(32, elementwise_affine=False) for m in (torch.nn, nn))
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_module_is_copied_converted_and_compiled():
    module = copy.deepcopy(nn.RMSNorm(32)).to(torch.bfloat16)
    x = torch.randn(4, 32, dtype=torch.bfloat16)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert nn.RMSNorm(32)(x).dtype is torch.bfloat16


def test_what_a_module_refuses():
    with pytest.raises(gm.InvalidInputError, match="normalized_shape"):
        nn.RMSNorm((4, 32))
    with pytest.raises(gm.InvalidInputError, match=r"rows of 32"):
        nn.RMSNorm(32)(torch.randn(4, 16))


def _model():
    torch.manual_seed(0)
    return torch.nn.Sequential(nn.RMSNorm(16), torch.nn.Linear(16, 8), nn.RMSNorm(8))


def _train(model, x):
    model(x).square().sum().backward()
    return [p.grad for p in model.parameters()]


def _rank(rank, port, wrapper, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(1)
    x = torch.randn(8, 16)
    model = _model()
    wrapped = DistributedDataParallel(model) if wrapper == "ddp" else fully_shard(model)
    grads = _train(wrapped, x[rank * 4 : rank * 4 + 4])
    full = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
    want = _train(_model(), x)
    close = all(
        torch.allclose(g * 2, w, rtol=1e-4, atol=1e-5) for g, w in zip(full, want, strict=True)
    )
    results.put((rank, close))
    results.close()
    results.join_thread()
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_data_parallel_training(wrapper):
    """Two processes with half of the batch each get the gradients of the whole one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(rank, port, wrapper, results)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    assert found == {0: True, 1: True}
