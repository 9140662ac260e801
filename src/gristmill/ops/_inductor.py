"""Inductor's code calls our ops as plain functions, without torch's dispatcher.

A custom op is a *fallback* to Inductor: code that it generates calls `torch.ops.gristmill._<op>`,
which boxes the arguments on the way to our kernel in Python and costs more than what runs there,
then checks each output's layout. Ours is lowered to the same node under another name: that of a
function of ours, one for each place in the graph (`Dispatcher.in_graph`). C++ that Inductor
generates (`cpp_wrapper`, AOTInductor) and torch versions without what this needs keep the op.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

from gristmill.core.op import Op, as_tuple

IMPORT = "from gristmill.ops._dispatch import in_graph as gristmill_in_graph"


def offer(op: Op, overload: Any) -> None:
    """Have Inductor, where this process has loaded it, lower an op's overload to a plain call."""
    lowering = sys.modules.get("torch._inductor.lowering")
    if overload in getattr(lowering, "lowerings", (overload,)):  # not loaded, or known there
        return
    ir = sys.modules.get("torch._inductor.ir")
    wanted = ("register_lowering", "fallback_handler")
    if all(hasattr(lowering, name) for name in wanted) and hasattr(ir, "FallbackKernel"):
        _register(op, overload, lowering, ir)


def _register(op: Op, overload: Any, lowering: Any, ir: Any) -> None:
    fallback = lowering.fallback_handler(overload)
    parameters = list(op.signature.parameters.values())

    @functools.wraps(fallback)  # it has a mark that Inductor looks for
    def lowered(*args: Any, **kwargs: Any) -> Any:
        if not _writes_python(ir.V.graph):
            return fallback(*args, **kwargs)
        rest = [kwargs.get(p.name, p.default) for p in parameters[len(args) :]]
        made = _plain_call(ir).create(overload, *args, *rest)
        outputs: tuple[Any, ...] = as_tuple(made)
        node = outputs[0].inputs[0]
        node.gristmill_op = op.name
        for output in outputs:  # where sizes are fixed the function itself checks them, once
            output.skip_size_stride_alignment_checks = node.is_fixed()
        boxed = tuple(map(ir.TensorBox.create, outputs))
        return boxed if isinstance(made, tuple) else boxed[0]

    lowering.register_lowering(overload, type_promotion_kind=None)(lowered)


def _writes_python(graph: Any) -> bool:
    """Whether this graph becomes Python that this or another process runs with gristmill in it."""
    kinds = ("cpp_wrapper", "fx_wrapper", "aot_mode")
    return not any(getattr(graph, kind, False) for kind in kinds)


@functools.cache
def _plain_call(ir: ModuleType | Any) -> Any:
    """The class of our nodes; made when Inductor is there."""

    class PlainCall(ir.FallbackKernel):
        """A fallback whose code calls a function of ours by name."""

        def is_fixed(self) -> bool:
            """Whether every size, stride and scalar of the call is a number."""
            sizes = [s for i in self.inputs for s in (*i.get_size(), *i.get_stride())]
            return all(getattr(s, "is_number", isinstance(s, int)) for s in sizes) and all(
                value is None or type(value) in (bool, int, float, str)
                for value in self.constant_args
            )

        def codegen(self, wrapper: Any) -> None:
            name, fixed = self.gristmill_op, self.is_fixed()
            function = f"gristmill_{name}_{self.get_name()}"
            root = getattr(
                wrapper, "get_root_graph", lambda: wrapper
            )()  # a subgraph's code has none
            root.add_import_once(IMPORT)
            root.add_import_once(f"{function} = gristmill_in_graph({name!r}, {fixed})")
            self.python_kernel_name = function
            super().codegen(wrapper)

    return PlainCall
