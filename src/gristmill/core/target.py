"""A target: what a problem runs on."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

from gristmill import settings
from gristmill.errors import InvalidInputError, did_you_mean
from gristmill.record import record
from gristmill.settings import L2State


@record
class Target:
    """The silicon: vendor (`cuda`, `hip`, `cpu`), architecture (`sm_90`, `gfx942`), the sizes that
    configs depend on, and what calls find in its L2 cache (`Settings.l2`)."""

    vendor: str
    arch: str
    name: str
    num_sms: int
    shared_memory_bytes: int = 0
    l2_bytes: int = 0
    memory_bytes: int = 0
    warp_size: int = 32
    l2: L2State = "cold"

    @property
    def key(self) -> str:
        """Identity in the store: silicon, processor count, and a warm L2. So whatever is kept by
        target (measurements, plans, packs, lock files) keeps the two apart; a cold one's key is
        what it was before there was a choice."""
        return f"{self.vendor}:{self.arch}:{self.num_sms}:{self.label}"

    @property
    def label(self) -> str:
        """The device's name, with `, warm L2` where it is."""
        return f"{self.name}, warm L2" if self.l2 == "warm" else self.name

    @property
    def is_gpu(self) -> bool:
        return self.vendor != "cpu"

    @property
    def capability(self) -> int:
        """The CUDA compute capability as an int (90 for sm_90); 0 elsewhere."""
        return int(self.arch.removeprefix("sm_")) if self.arch.startswith("sm_") else 0

    @property
    def has_tma(self) -> bool:
        return self.capability >= 90


def device_name(target_key: str) -> str:
    """The device's label in a target's key."""
    return target_key.split(":", 3)[-1]


# Sizes from the vendors' datasheets, for compiling with no such device present.
_NAMED = {
    "sm_80": Target("cuda", "sm_80", "NVIDIA A100", 108, 166_912, 40 << 20, 80 << 30),
    "sm_90": Target("cuda", "sm_90", "NVIDIA H200", 132, 232_448, 60 << 20, 141 << 30),
    "sm_100": Target("cuda", "sm_100", "NVIDIA B200", 148, 232_448, 126 << 20, 180 << 30),
    "gfx942": Target(
        "hip", "gfx942", "AMD MI300X", 304, 65_536, 256 << 20, 192 << 30, warp_size=64
    ),
}


def named_target(arch: str) -> Target:
    """The target of a known architecture, without the device (`sm_80`, `sm_90`, `sm_100`,
    `gfx942`)."""
    try:
        return _NAMED[arch]
    except KeyError:
        raise InvalidInputError(
            f"`target` is {arch!r}; known architectures are "
            f"{', '.join(_NAMED)}.{did_you_mean(arch, _NAMED)}"
        ) from None


# What Triton 3.6 and 3.9 make binaries for: the warp size, and the bytes of shared memory that a
# block may have (CUDA's programming guide; AMD's instruction set manuals).
_COMPILED = {
    **{f"sm_{c}": ("cuda", 32, 166_912) for c in (80, 87)},
    **{f"sm_{c}": ("cuda", 32, 101_376) for c in (86, 89, 120, 121)},
    **{f"sm_{c}": ("cuda", 32, 232_448) for c in (90, 100, 103)},
    **{f"gfx{name}": ("hip", 64, 65_536) for name in ("90a", "942")},
    **{f"gfx{name}": ("hip", 32, 65_536) for name in (1100, 1101, 1102, 1200, 1201)},
    "gfx950": ("hip", 64, 163_840),
    "gfx1250": ("hip", 32, 327_680),
}

_PRODUCTS = {
    "a100": "sm_80", "l40s": "sm_89", "h100": "sm_90", "h200": "sm_90", "b200": "sm_100",
    "mi250x": "gfx90a", "mi300x": "gfx942", "mi355x": "gfx950",
}  # fmt: skip


def _likely(name: str) -> str:
    """A product's architecture, or near names of architectures."""
    product = _PRODUCTS.get(name.lower())
    if product is not None:
        return f" {name} is {product}."
    return did_you_mean(name, _COMPILED) if name.startswith(("sm", "gfx")) else ""


def compile_target(arch: str) -> Target:
    """What compiling for an architecture takes, and no more: vendor, architecture, warp size and
    the shared memory of a block.

    Raises:
        InvalidInputError: it is none that Triton compiles for.
    """
    if arch not in _COMPILED:
        raise InvalidInputError(
            f"a target is {arch!r}; kernels can be compiled for {', '.join(_COMPILED)}. Name "
            f"one of them.{_likely(str(arch))}"
        )
    vendor, warp_size, shared = _COMPILED[arch]
    return Target(vendor, arch, arch, num_sms=0, shared_memory_bytes=shared, warp_size=warp_size)


def device_target(device: torch.device) -> Target:
    """The target behind a torch device, with L2 as the settings say. Starts CUDA for a CUDA device
    that is not started yet."""
    return _device_target(device, settings.current().l2)


@functools.lru_cache(maxsize=64)
def _device_target(device: torch.device, l2: L2State) -> Target:
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        hip = torch.version.hip is not None
        shared = getattr(p, "shared_memory_per_block_optin", 0) or getattr(
            p, "shared_memory_per_block", 0
        )
        return Target(
            vendor="hip" if hip else "cuda",
            arch=p.gcnArchName.split(":")[0] if hip else f"sm_{p.major}{p.minor}",
            name=p.name,
            num_sms=p.multi_processor_count,
            shared_memory_bytes=shared,
            l2_bytes=getattr(p, "L2_cache_size", 0),
            memory_bytes=p.total_memory,
            warp_size=getattr(p, "warp_size", 64 if hip else 32),
            l2=l2,
        )
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return Target("cpu", platform.machine(), _cpu_name(), threads, l2=l2)
    raise InvalidInputError(
        f"a tensor is on {str(device)!r}; gristmill runs on 'cuda' and 'cpu' devices. Move the "
        f"tensors to one of them."
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "cpu"
