"""Bound operators: chosen for one problem, and called past all that chose them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from gristmill.compile.bound import BoundCall, program_into, program_of
from gristmill.core.config import Config
from gristmill.core.implementation import PLAIN_TYPES
from gristmill.core.op import as_tuple
from gristmill.core.plan import Objective, Plan
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.errors import InvalidInputError
from gristmill.native.calls import calls
from gristmill.ops._dispatch import Dispatcher, dispatcher
from gristmill.ops._generate import bound_function, key_function, values_key_function
from gristmill.ops._key import is_plain
from gristmill.selection.select import select


class BoundOp:
    """An operator chosen for one problem: call it with tensors of that problem for the shortest way
    to the device.

    A call checks the call key, then launches. Arguments of another problem are right too: they take
    the op's direct path, which selects again and never tunes.

    Attributes:
        op: the op's name. problem: what it was chosen for. plan: the choice with its evidence.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_call_key",
        "_device",
        "_dispatch",
        "_native_call",
        "_outs",
        "_table",
        "op",
        "plan",
        "problem",
    )

    def __init__(
        self, dispatch: Dispatcher, problem: Problem, plan: Plan, values: tuple[Any, ...]
    ) -> None:
        self.op, self.problem, self.plan = dispatch.op.name, problem, plan
        self._dispatch, self._device = dispatch, dispatch.op.device(values)
        self._take(plan, values)

    @property
    def implementation(self) -> str:
        """The name of the chosen implementation."""
        return self.plan.candidate.implementation

    @property
    def config(self) -> Config:
        """The chosen config."""
        return self.plan.candidate.config

    def __call__(self, *args: Any, out: Any = None, **kwargs: Any) -> Any:
        """The op on these arguments, as its schema has them.

        Args:
            out: a tensor to write the result into, or a tuple of them where the op has several:
                contiguous, of the result's shape, dtype and device, at a multiple of 16 bytes, and
                sharing no memory with an argument. A Triton choice writes there; of any other the
                result is copied.

        Raises:
            InvalidInputError: the arguments break the op's contract, or `out` does not fit or would
                need a gradient.
        """
        raise NotImplementedError  # each op's bound operators have their own (`_bound_class`)

    def preload(self) -> BoundOp:
        """Load the kernel now, not at the first call (before a CUDA-graph capture, say)."""
        values = self.problem.empty(self._device)
        self._take(self.plan, values, self._dispatch.call_of(self.plan, values))
        return self

    def _take(self, plan: Plan, values: tuple[Any, ...], call: BoundCall | None = None) -> None:
        """Run a plan for arguments of these values' key, from now on."""
        native = self._dispatch.is_native(plan)
        op = self._dispatch.op
        key = key_function(op, native=True) if native else values_key_function(op)
        # A plan may change under a call of another thread that has compared its key already. So a
        # call of torch's own, whose key asks for less, has a place of its own.
        place = "_native_call" if native else "_call"
        module = calls()
        table = None if module is None else module.Table()
        if call is None:
            call = functools.partial(self._first_call, plan, place, table)
        elif table is not None:
            table.add(values, program_of(call))
        setattr(self, place, call)
        self._table, self._outs = table, None if module is None else module.Table()
        # Of calls that need no gradient, on torch's own classes: others take another path.
        self._call_key = key(*values)

    def _first_call(self, plan: Plan, place: str, table: Any, *values: Any) -> Any:
        call = self._dispatch.call_of(plan, values)
        setattr(self, place, call)
        if table is not None:
            table.add(values, program_of(call))
        return call(*values)

    def _into(self, out: Any, args: tuple[Any, ...]) -> Any:
        """A call whose outputs are given, checked."""
        op, outs = self._dispatch.op, out if isinstance(out, tuple) else (out,)
        values = op.bind(args)
        _check_outs(op.name, values, outs, op.outputs(op.problem(values)), op.device(values))
        table, given, candidate = self._outs, (*values, *outs), self.plan.candidate
        if table is not None and is_plain() and self._is_for(values):
            if not table.knows(given):
                chosen = implementation(op.name, candidate.implementation)
                program = program_into(chosen, candidate.config, values, outs)
                if program is not None:
                    table.add(given, program)
            if table(*given) is not calls().MISS:
                return written(out)
        return copied(self._dispatch.direct(*values), out)

    def _is_for(self, values: tuple[Any, ...]) -> bool:
        """Whether checked arguments are of this operator's problem and device."""
        op = self._dispatch.op
        return op.device(values) == self._device and op.problem(values) == self.problem

    def reselect(self) -> None:
        """Use the plan that there is now: from the next call on, which binds it. From any thread.

        `tune="idle"` does this when the problem has been tuned.
        """
        op, target = self._dispatch.op, device_target(self._device)
        plan = select(op, self.problem, target, self._dispatch.objective)
        changed, self.plan = plan.candidate != self.plan.candidate, plan
        if changed:
            # The only thing that a call in another thread can see.
            self.__class__ = cast("Any", _Changing)

    def __deepcopy__(self, memo: Any) -> BoundOp:
        return self  # there is nothing in it that a copy could change

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as a question: where it is restored, the store there answers."""
        problem, objective = self.problem.to_json(), self._dispatch.objective
        return (_restore, (problem, str(self._device), objective))

    def __repr__(self) -> str:
        return f"<gristmill {self.problem}: {self.plan.candidate} ({self.plan.origin})>"


class _Changing(BoundOp):
    """A bound operator whose plan has changed: its next call takes it, with arguments to bind."""

    __slots__ = ()

    def __call__(self, *args: Any, out: Any = None, **kwargs: Any) -> Any:
        dispatch, plan = self._dispatch, self.plan
        if not torch.compiler.is_compiling():
            values = dispatch.op.bind(args, kwargs)
            plain = all(type(v) in PLAIN_TYPES for v in values if isinstance(v, torch.Tensor))
            if plain and self._is_for(values):
                self._take(plan, values)
                self.__class__ = cast("Any", _bound_class(dispatch, dispatch.is_native(plan)))
            if out is not None:
                return self._into(out, values)
        made = dispatch.direct(*args, **kwargs)
        return made if out is None else copied(made, out)


@functools.cache
def _bound_class(dispatch: Dispatcher, native: bool) -> type[BoundOp]:
    """Bound operators of one op: with a `__call__` generated from its schema."""
    call = bound_function(dispatch.op, dispatch.overload, dispatch.direct, native, copied, written)
    return type("BoundOp", (BoundOp,), {"__slots__": (), "__call__": call})


def bound_op(
    dispatch: Dispatcher, problem: Problem, plan: Plan, values: tuple[Any, ...]
) -> BoundOp:
    """The operator of a dispatcher bound to a plan."""
    return _bound_class(dispatch, dispatch.is_native(plan))(dispatch, problem, plan, values)


def _restore(problem: Mapping[str, Any], device: str, objective: Objective) -> BoundOp:
    asked, where = Problem.from_json(problem), torch.device(device)
    spec = load(asked.op)
    plan, dispatch = (
        select(spec, asked, device_target(where), objective),
        dispatcher(asked.op, objective),
    )
    values = asked.empty(where)
    dispatch.build(plan, values)
    return bound_op(dispatch, asked, plan, values)


def copied(made: Any, out: Any) -> Any:
    """`out`, with what was made copied into it."""
    outs = out if isinstance(out, tuple) else (out,)
    for tensor, result in zip(outs, as_tuple(made), strict=True):
        tensor.copy_(result)
    return out


def written(out: Any) -> Any:
    """`out`, which a kernel has written into: autograd is told, as of any operation in place."""
    for tensor in out if isinstance(out, tuple) else (out,):
        if not tensor.is_inference():  # those are not counted
            torch.autograd.graph.increment_version(tensor)
    return out


def _check_outs(
    op: str,
    values: tuple[Any, ...],
    outs: tuple[Any, ...],
    specs: Sequence[TensorSpec],
    device: torch.device,
) -> None:
    """Refuse what results cannot be written into."""
    if len(outs) != len(specs) or not all(type(out) in PLAIN_TYPES for out in outs):
        given = ", ".join(type(out).__name__ for out in outs)
        wanted = "a tensor" if len(specs) == 1 else f"a tuple of {len(specs)} tensors"
        raise InvalidInputError(f"`out` is {given}; `{op}` writes into {wanted}. Pass that.")
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *outs)):
        raise InvalidInputError(
            f"`{op}` with `out` records no gradient, and an argument or `out` requires one. Leave "
            "`out` away, or call it under `torch.no_grad()`."
        )
    for out, spec in zip(outs, specs, strict=True):
        wrong = _misfit(out, spec, device)
        if wrong:
            raise InvalidInputError(f"`out` {wrong}. Allocate it with `torch.empty`.")
    for i, out in enumerate(outs):
        if any(_meets(out, other) for other in (*tensors, *outs[:i])):
            raise InvalidInputError(
                f"`out` shares memory with an argument of `{op}` or with another output; a kernel "
                "may read there what it has overwritten. Pass memory of its own."
            )


def _misfit(out: torch.Tensor, spec: TensorSpec, device: torch.device) -> str:
    """What is wrong with a tensor as an output, and what is allowed; empty where nothing is."""
    if tuple(out.shape) != spec.shape:
        return f"has shape {tuple(out.shape)}; the result has {spec.shape}"
    if out.dtype is not spec.torch_dtype:
        return f"has dtype {out.dtype}; the result has {spec.torch_dtype}"
    if out.device != device:
        return f"is on {out.device}; the arguments are on {device}"
    if not out.is_contiguous() or out.is_neg():
        return f"has strides {out.stride()}; it has to be contiguous"
    if out.data_ptr() & 15:
        return f"lies {out.data_ptr() & 15} bytes past a multiple of 16"
    return ""


def _meets(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors' memory may overlap: from the first to the last byte of each."""
    start, end = _bytes(one)
    first, last = _bytes(other)
    return start < last and first < end


def _bytes(tensor: torch.Tensor) -> tuple[int, int]:
    start = tensor.data_ptr()
    return start, start + TensorSpec.of(tensor).extent * tensor.element_size()
