"""Tuning of kernels that are no ops: `gristmill.autotune` and `gristmill.TritonAutoTuner`."""
