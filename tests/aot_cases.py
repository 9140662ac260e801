"""What the tests of the ahead-of-time compiler share: kernels with specifications, and variants
that nothing was compiled for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from gristmill import aot
from gristmill.aot.expand import Expansion
from gristmill.aot.manifest import KernelEntry, Usage, Variant

EXAMPLES = Path(__file__).parents[1] / "examples" / "aot"


def module(path, name):
    """A Python file as a module of this name."""
    spec = importlib.util.spec_from_file_location(name, path)
    found = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def example(name):
    """The kernel file of an example."""
    return module(EXAMPLES / name / "kernel.py", f"aot_example_{name}")


def add_kernel(fn=None, **more):
    """The example of the documentation."""
    fn = fn or example("vector_add").add_kernel
    pointers = dict.fromkeys(("x_ptr", "y_ptr", "out_ptr"), aot.Ptr("T"))
    given = {**pointers, "n_elements": aot.Int([16, None]), "BLOCK_SIZE": [64], **more}
    return aot.Kernel(fn).spec(**given).tie("x_ptr", "y_ptr", "out_ptr")


def matmul_kernel():
    """The example's specification: six arguments that are multiples of 16, or not: 64 patterns."""
    sys.modules["kernel"] = example("matmul")  # what it imports
    try:
        return module(EXAMPLES / "matmul" / "spec.py", "aot_example_matmul_spec").matmul
    finally:
        del sys.modules["kernel"]


def entry(kernel, *archs, choices=()):
    """A kernel's entry as a manifest has it, without binaries."""
    expansion = Expansion(kernel, archs)
    variants = tuple(
        Variant(
            c.arch,
            c.types,
            c.arguments,
            c.num_warps,
            c.num_stages,
            dict(c.options),
            "0" * 64,
            kernel.name,
            32 * c.num_warps,
            1,
            False,
            False,
            0,
            1,
            (),
            Usage(None, None, 0, 0),
        )
        for c in expansion.combinations
    )
    variables = tuple(kernel.variables.items())
    return KernelEntry(kernel.name, variables, expansion.parameters, variants, "", (), choices)
