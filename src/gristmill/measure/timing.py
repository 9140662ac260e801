"""Timers: device, host and graph-replay time of calls, interleaved, with L2 flushed by reading, or
warm from the same call.

Flushing by reading matters: a flush that writes leaves dirty lines whose write-back lands in the
timed kernel (11 us for a 235 MB GEMV on an H200). Launches of what is compared alternate one by
one, because large GEMMs are power-limited and drift by 4% between runs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from gristmill.settings import L2State

Call = Callable[[], Any]

# calls between two synchronisations when host time is measured (the driver's queue holds about
# 1,000)
HOST_BATCH = 200
ROUNDS_PER_SYNC = 32


class Timer(Protocol):
    """Measures calls on one device; every figure is in microseconds.

    `prepare` is called, untimed, before every timed call of `device_us`: what a call needs to find
    (a counter at zero). A call that needs it has no host or graph time.
    """

    prepare: Call | None

    def device_us(
        self, calls: Sequence[Call], repeats: int, host_us: float = 50.0
    ) -> list[list[float]]:
        """Samples of each call's device time, calls alternating, caches flushed before each (with a
        warm L2, the call then runs once untimed);
        `host_us` is how long the slowest of the calls keeps the host (the flush is stretched so
        that the host stays ahead of the device)."""
        ...

    def host_us(self, call: Call, device_us: float) -> float:
        """The host time to issue one call of about `device_us` device time: the median of
        batches."""
        ...

    def graph_us(self, calls: Sequence[Call], repeats: int) -> list[list[float] | None]:
        """Samples of each call's time inside a replayed graph, as `device_us`; `None` where a call
        cannot be captured."""
        ...

    def synchronize(self) -> None:
        """Wait for the device; raises what an earlier launch left behind."""
        ...


def timer(device: torch.device, l2: L2State = "cold") -> Timer:
    """The timer of a device. With L2 `warm` a timed call finds what an untimed one just before it
    has left, after a flush: not what another candidate of the same operands left."""
    return CudaTimer(device, l2) if device.type == "cuda" else CpuTimer(l2)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep the collector out of a timed block."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class CpuTimer:
    """Wall-clock time: on a CPU the call is its own device. Its caches are not flushed: `cold` is
    whatever the calls that are compared leave each other."""

    prepare: Call | None = None

    def __init__(self, l2: L2State = "cold") -> None:
        self._warm = l2 == "warm"

    def device_us(
        self, calls: Sequence[Call], repeats: int, host_us: float = 50.0
    ) -> list[list[float]]:
        del host_us
        samples: list[list[float]] = [[] for _ in calls]
        with no_garbage_collection():
            for _ in range(repeats):
                for call, times in zip(calls, samples, strict=True):
                    for untimed in (call, None) if self._warm else (None,):
                        if self.prepare is not None:
                            self.prepare()
                        if untimed is not None:
                            untimed()
                    start = time.perf_counter()
                    call()
                    times.append((time.perf_counter() - start) * 1e6)
        return samples

    def host_us(self, call: Call, device_us: float) -> float:
        del call
        return device_us

    def graph_us(self, calls: Sequence[Call], repeats: int) -> list[list[float] | None]:
        del repeats
        return [None for _ in calls]

    def synchronize(self) -> None:
        return None


class CudaTimer:
    """CUDA events around each call, on the current stream."""

    prepare: Call | None = None

    def __init__(self, device: torch.device, l2: L2State = "cold") -> None:
        self.device = device
        self._warm = l2 == "warm"
        l2_bytes = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or (
            50 << 20
        )
        self._buffer = torch.zeros(
            max(4 * l2_bytes, 128 << 20) // 4, dtype=torch.float32, device=device
        )
        self._sum = torch.empty((), dtype=torch.float32, device=device)
        self._flush_us = self._time_flush()

    def flush(self) -> None:
        """Evict L2 by reading a buffer several times its size."""
        torch.sum(self._buffer, dim=0, out=self._sum)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def _time_flush(self) -> float:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        for event in events:
            self.flush()
            event.record()
        self.synchronize()
        return max(events[2].elapsed_time(events[3]) * 1e3, 1.0)

    def device_us(
        self, calls: Sequence[Call], repeats: int, host_us: float = 50.0
    ) -> list[list[float]]:
        samples: list[list[float]] = [[] for _ in calls]
        ahead_us = host_us * (2 if self._warm else 1) + 30.0  # of work, before the timed call
        flushes = 1 + int(ahead_us // self._flush_us)
        with no_garbage_collection():
            for first in range(0, repeats, ROUNDS_PER_SYNC):
                rounds = [
                    self._round(calls, flushes)
                    for _ in range(min(ROUNDS_PER_SYNC, repeats - first))
                ]
                self.synchronize()
                for pairs in rounds:
                    for times, (start, end) in zip(samples, pairs, strict=True):
                        times.append(start.elapsed_time(end) * 1e3)
        return samples

    def _round(
        self, calls: Sequence[Call], flushes: int
    ) -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
        pairs = []
        for call in calls:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            if self.prepare is not None:
                self.prepare()
            for _ in range(flushes):
                self.flush()
            if self._warm:
                call()
                if self.prepare is not None:
                    self.prepare()
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        return pairs

    def host_us(self, call: Call, device_us: float) -> float:
        if self.prepare is not None:
            return device_us
        count = int(min(HOST_BATCH, max(10, 20_000 / max(device_us, 1.0))))
        batches = []
        with no_garbage_collection():
            for _ in range(5):
                self.synchronize()
                start = time.perf_counter()
                for _ in range(count):
                    call()
                batches.append((time.perf_counter() - start) / count * 1e6)
        self.synchronize()
        return sorted(batches)[2]

    def graph_us(self, calls: Sequence[Call], repeats: int) -> list[list[float] | None]:
        captured = [None if self.prepare else self._capture(call) for call in calls]
        samples: list[list[float] | None] = [None if c is None else [] for c in captured]
        with no_garbage_collection():
            for _ in range(repeats):
                for one, times in zip(captured, samples, strict=True):
                    if one is None or times is None:
                        continue
                    graph, start, end = one
                    graph.replay()
                    # an event of a graph holds one time: read it before the next replay
                    self.synchronize()
                    times.append(start.elapsed_time(end) * 1e3)
        return samples

    def _capture(
        self, call: Call
    ) -> tuple[torch.cuda.CUDAGraph, torch.cuda.Event, torch.cuda.Event] | None:
        """A graph of a flush and the call (with a warm L2, twice), with timing events around the
        last; `None` where capture fails."""
        graph = torch.cuda.CUDAGraph()
        start, end = (torch.cuda.Event(enable_timing=True, external=True) for _ in range(2))
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(side):
                call()
                self.flush()
            self.synchronize()
            # Collecting somebody's dead graph would break the capture.
            with no_garbage_collection(), torch.cuda.graph(graph, stream=side):
                self.flush()
                if self._warm:
                    call()
                start.record()
                call()
                end.record()
            graph.replay()
            self.synchronize()
        except RuntimeError:
            return None
        return graph, start, end
