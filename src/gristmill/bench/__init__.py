"""Benchmarks: providers of an op compared on real problems, correctness first, launches interleaved
one by one.

The face is lazy: a plug-in that registers a provider does not import what measures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gristmill.bench.comparison import compare
    from gristmill.bench.pages import bench_page, tuning_page
    from gristmill.bench.registration import provider, unregister
    from gristmill.bench.results import Report, load_reports, save_reports
    from gristmill.bench.suite import bench
    from gristmill.bench.tuning_record import TuningRecord, load_records, save_records

_HOMES = {
    "Report": "results",
    "TuningRecord": "tuning_record",
    "bench": "suite",
    "bench_page": "pages",
    "compare": "comparison",
    "load_records": "tuning_record",
    "load_reports": "results",
    "provider": "registration",
    "save_records": "tuning_record",
    "save_reports": "results",
    "tuning_page": "pages",
    "unregister": "registration",
}

__all__ = [
    "Report",
    "TuningRecord",
    "bench",
    "bench_page",
    "compare",
    "load_records",
    "load_reports",
    "provider",
    "save_records",
    "save_reports",
    "tuning_page",
    "unregister",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gristmill.bench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gristmill.bench.{_HOMES[name]}"), name)
