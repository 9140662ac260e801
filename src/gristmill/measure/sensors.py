"""What a GPU says of itself: clocks, temperature, power, what holds its clocks down, who else is on
it. By `pynvml` where it is installed, else by `nvidia-smi`; nothing elsewhere, and no fault."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gristmill.measure.lease import device_identity
from gristmill.record import record

SMI_TIMEOUT_S = 5.0
SLOW_S = 1.0  # a look that takes longer is the last one: without persistence mode it takes seconds
# Bits of NVML's reasons why clocks are lower than they could be. Idleness and a user's own limit
# are none of ours.
HOLDING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # newer, older drivers


@record
class Reading:
    """One look at a device: clocks in MHz, degrees Celsius, watts; what held the clocks down; the
    processes on it that are neither this one nor its parent. `None`: not known."""

    sm_mhz: float | None = None
    memory_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    held_by: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reading:
        lists: dict[str, Any] = {name: tuple(data[name]) for name in ("held_by", "others")}
        return cls(**{**data, **lists})


Look = Callable[[], "Reading | None"]


class Sensor:
    """Looks at one device; after a look that fails or takes long, no more."""

    def __init__(self, look: Look | None) -> None:
        self._look = look

    def read(self) -> Reading | None:
        """The device as it is now, or `None` where nothing can be said."""
        if self._look is None:
            return None
        start = time.monotonic()
        try:
            reading = self._look()
        except Exception:  # noqa: BLE001 - evidence only: no driver's fault may fail a measurement
            reading = None
        if reading is None or time.monotonic() - start > SLOW_S:
            self._look = None
        return reading


@functools.lru_cache(maxsize=16)
def sensor(device: torch.device) -> Sensor:
    """The sensor of a device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return Sensor(None)
    return Sensor(_nvml(f"GPU-{device_identity(device)}") or _smi(f"GPU-{device_identity(device)}"))


def holding(bits: int) -> tuple[str, ...]:
    """What NVML's bits say holds the clocks down."""
    return tuple(name for bit, name in HOLDING.items() if bits & bit)


def strangers(processes: Mapping[int, str]) -> tuple[str, ...]:
    """Of the processes on a device (pid to name), those that are none of ours, as "pid name".

    In a container the driver knows us by other numbers: where this process, which is on the device,
    is not among them, nothing can be told.
    """
    if os.getpid() not in processes:
        return ()
    ours = (os.getpid(), os.getppid())
    return tuple(
        f"{pid} {name}".rstrip() for pid, name in sorted(processes.items()) if pid not in ours
    )


def _nvml(uuid: str) -> Look | None:
    """A look by `pynvml` (the package nvidia-ml-py), where it is installed and works."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports] - no dependency: used where it is

        nvml: Any = pynvml
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
    except Exception:  # noqa: BLE001 - no package, no driver, or a partition that has no handle
        return None
    reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    reasons = reasons or nvml.nvmlDeviceGetCurrentClocksThrottleReasons

    def known(ask: Callable[..., Any], *args: Any) -> Any:
        try:
            return ask(handle, *args)
        except nvml.NVMLError:  # this device has no such sensor
            return None

    def look() -> Reading:
        power_mw = known(nvml.nvmlDeviceGetPowerUsage)
        running = known(nvml.nvmlDeviceGetComputeRunningProcesses) or ()
        return Reading(
            sm_mhz=known(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            memory_mhz=known(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            temperature_c=known(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power_mw is None else power_mw / 1e3,
            held_by=holding(known(reasons) or 0),
            others=strangers({p.pid: _name(p.pid) for p in running}),
        )

    return look


def _smi(uuid: str) -> Look | None:
    """A look by the driver's own command."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None

    def ask(what: str, fields: Sequence[str]) -> str | None:
        query = f"--query-{what}={','.join(fields)}"
        done = subprocess.run(
            [command, "-i", uuid, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=SMI_TIMEOUT_S,
            check=False,
        )
        return done.stdout if done.returncode == 0 else None

    def look() -> Reading | None:
        for reasons in REASONS:
            text = ask("gpu", (*FIELDS, reasons))
            if text is not None:
                return reading_of(text, ask("compute-apps", ("pid", "process_name")) or "")
        return None

    return look


def reading_of(gpu: str, processes: str) -> Reading | None:
    """A reading from what `nvidia-smi` prints as CSV of `FIELDS` with the reasons, and of the
    processes (pid, name)."""
    cells = [cell.strip() for cell in gpu.strip().split(",")]
    if len(cells) != len(FIELDS) + 1:
        return None
    sm, memory, temperature, power = (_number(cell) for cell in cells[:-1])
    try:
        held = holding(int(cells[-1], 16))
    except ValueError:  # "[N/A]"
        held = ()
    found: dict[int, str] = {}
    for line in processes.strip().splitlines():
        pid, _, name = line.partition(",")
        if pid.strip().isdigit():
            found[int(pid)] = Path(name.strip()).name
    return Reading(sm, memory, temperature, power, held, strangers(found))


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
