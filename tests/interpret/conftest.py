"""These tests run Triton kernels in Triton's interpreter; start pytest on this folder alone."""

import os

os.environ["TRITON_INTERPRET"] = (
    "1"  # before Triton is imported: it is read when a kernel is decorated
)
