"""Ahead of time: `@triton.jit` kernels as C artifacts that need neither Python nor Triton."""
