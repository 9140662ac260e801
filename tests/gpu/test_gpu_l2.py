"""What a warm L2 changes on a GPU, and what the device says of itself."""

from __future__ import annotations

import pytest
import torch

from gristmill.measure.conditions import Watch
from gristmill.measure.sensors import sensor
from gristmill.measure.statistics import median
from gristmill.measure.timing import timer


@pytest.mark.parametrize("how", ["launches", "graphs"])
def test_what_fits_into_l2_is_read_faster_when_it_is_warm(cuda, how):
    l2_bytes = torch.cuda.get_device_properties(cuda).L2_cache_size
    x = torch.randn(l2_bytes // 4 // 4, device=cuda)  # a quarter of L2
    out = torch.empty((), device=cuda)

    def time_us(l2):
        clock = timer(cuda, l2)
        call = [lambda: torch.sum(x, dim=0, out=out)]
        (times,) = clock.device_us(call, 30) if how == "launches" else clock.graph_us(call, 30)
        return median(times)

    time_us("cold")
    assert time_us("warm") < 0.95 * time_us("cold")


def test_the_device_tells_its_clocks(cuda):
    if (reading := sensor(cuda).read()) is not None:  # neither pynvml nor nvidia-smi: nothing
        assert 100 < reading.sm_mhz < 5000
        assert 0 < reading.temperature_c < 120


def test_anchors_of_a_device_are_alike(cuda):
    watch, clock = Watch(cuda), timer(cuda)
    for _ in range(20):
        watch.anchor(clock)
    times = watch.drain()["anchors_us"]
    assert len(times) == 20
    assert 0 < min(times) <= median(times) < 10 * min(times)
