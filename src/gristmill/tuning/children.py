"""The processes of a tuning run, each by the module that it runs: light to import, as an actor that
only hosts one has no need of torch."""

from __future__ import annotations

WORKER = "gristmill.tuning.worker"
COMPILER = "gristmill.tuning.compiler"
