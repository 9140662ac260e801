"""Data-parallel training over modules of ours, in two processes: CPUs over gloo, GPUs over NCCL."""

from __future__ import annotations

import socket

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gristmill import nn

WRAPPERS = ("ddp", "fsdp")


def _model(device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(nn.RMSNorm(256), torch.nn.Linear(256, 128), nn.RMSNorm(128))
    return model.to(device)


def _train(model, x):
    model(x).square().sum().backward()
    return [p.grad for p in model.parameters()]


def _rank(rank, kind, wrapper, port, results):
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=2)
    torch.manual_seed(1)
    x, model = torch.randn(64, 256).to(device), _model(device)
    wrapped = DistributedDataParallel(model) if wrapper == "ddp" else fully_shard(model)
    grads = _train(wrapped, x[rank * 32 : rank * 32 + 32])
    full = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
    want = _train(_model(device), x)
    pairs = zip(full, want, strict=True)
    close = [torch.allclose(g * 2, w, rtol=1e-3, atol=1e-3) for g, w in pairs]
    results.put((rank, all(close)))
    results.close()
    results.join_thread()
    dist.barrier()
    dist.destroy_process_group()


def gradients_agree(kind, wrapper):
    """Whether two ranks with half of the batch each get the gradients of the whole one, by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(rank, kind, wrapper, port, results))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    return found
