"""One row of an operator: a candidate's launches, traced for a range of sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gristmill.aot.elements import element_type
from gristmill.aot.expressions import UntraceableError
from gristmill.aot.functions import Condition, OpTensor, Passed
from gristmill.aot.op_choice import Chosen
from gristmill.aot.symbolic import NARROW, Traced, Tracer, allocated, fixed
from gristmill.core.launch import Launch, TensorMap
from gristmill.core.op import Op
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.target import Target
from gristmill.record import record

HINTS = (8 / 7, 4 / 3)  # what a float argument is multiplied by, to be known again in a launch
SMALL = 2.0**-10  # in place of a float that is 0


@record
class TracedLaunch:
    """A launch in expressions.

    Attributes:
        passed: for the kernel's run-time parameters, in order.
        types: theirs: element types, `bool`, `i32` (the conditions keep it within 32 bits), `int`.
        blocks: of those that are descriptors.
    """

    kernel: Any
    passed: tuple[Passed, ...]
    types: tuple[str, ...]
    blocks: tuple[tuple[int, ...], ...]
    constexprs: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]
    grid: tuple[str, str, str]


@record
class TracedRow:
    """A candidate's launches, and what they rely on."""

    conditions: tuple[Condition, ...]
    axes: tuple[tuple[str, int], ...]  # inexact ones: the expression, the bucket's edge
    workspace: tuple[OpTensor, ...]
    launches: tuple[TracedLaunch, ...]


def trace(
    op: Op,
    problem: Problem,
    target: Target,
    chosen: Chosen,
    dynamic: Mapping[str, Sequence[int]],
) -> TracedRow:
    """A candidate's launches for a problem, with the `dynamic` dimensions of its tensors open.

    Float arguments are followed by their values: the launcher runs twice with other ones, and what
    changes with an argument is that argument.

    Raises:
        UntraceableError: the launcher does what expressions cannot say.
    """
    floats = [name for name, value in problem.args if type(value) is float]
    if not floats:
        return _Run(op, problem, target, chosen, dynamic, {}).row()
    rows = []
    for run in HINTS:
        hints = {n: (problem[n] or SMALL) * run ** (1 + i) for i, n in enumerate(floats)}
        rows.append((hints, _Run(op, problem, target, chosen, dynamic, hints).row()))
    (first, one), (second, other) = rows
    launches = tuple(
        _joined(a, b, first, second) for a, b in zip(one.launches, other.launches, strict=True)
    )
    row = TracedRow(one.conditions, one.axes, one.workspace, launches)
    again = TracedRow(other.conditions, other.axes, other.workspace, launches)
    if row != again:
        raise UntraceableError(f"the launches depend on the value of {' or '.join(floats)}")
    return row


def _joined(
    one: TracedLaunch, other: TracedLaunch, first: Mapping[str, float], second: Mapping[str, float]
) -> TracedLaunch:
    """A launch of two runs, with float arguments where their values were."""
    passed = []
    for a, b in zip(one.passed, other.passed, strict=True):
        found = a
        if type(a.value) is float and a != b:
            names = [n for n in first if (a.value, b.value) == (first[n], second[n])]
            if not names:
                raise UntraceableError(f"a launch passes a number computed from {', '.join(first)}")
            found = Passed("scalar", names[0])
        passed.append(found)
    plain = (one.kernel, one.types, one.blocks, one.constexprs, one.options, one.grid)
    again = (other.kernel, other.types, other.blocks, other.constexprs, other.options, other.grid)
    if plain != again:
        raise UntraceableError(f"a launch depends on the value of {' or '.join(first)}")
    return TracedLaunch(plain[0], tuple(passed), *plain[1:])


class _Run:
    """One run of a launcher on symbols."""

    def __init__(
        self,
        op: Op,
        problem: Problem,
        target: Target,
        chosen: Chosen,
        dynamic: Mapping[str, Sequence[int]],
        floats: Mapping[str, float],
    ) -> None:
        self.op, self.problem, self.target, self.chosen = op, problem, target, chosen
        self.tracer = Tracer()
        self.dynamic = dynamic
        self.values = tuple(self._value(name, value, floats) for name, value in problem.args)
        self.tensors: list[tuple[str, torch.Tensor]] = [
            (name, value)
            for name, value in zip(op.names, self.values, strict=True)
            if isinstance(value, Traced)
        ]

    def _value(self, name: str, value: Any, floats: Mapping[str, float]) -> Any:
        if isinstance(value, TensorSpec):
            return self.tracer.argument(name, value, self.dynamic.get(name, ()))
        return floats.get(name, value)

    def row(self) -> TracedRow:
        """What the launcher launches."""
        impl, config = self.chosen.implementation, self.chosen.config
        self.op.validate(self.values)
        problem = self.op.problem(self.values)
        reason = impl.why_not(problem, self.target)
        if reason is not None:
            raise UntraceableError(f"{impl.id} does not take the problem: {reason}")
        self._rely_on_derived(problem)
        outputs = allocated(self.op.outputs(problem))
        workspace = allocated(impl.workspace(problem, config))
        self.tensors += zip(self.op.output_names, outputs, strict=True)
        self.tensors += ((f"workspace_{i}", tensor) for i, tensor in enumerate(workspace))
        launches = tuple(map(self._launch, impl.launches(self.values, outputs, workspace, config)))
        needed = [self.tracer.tensor(f"workspace_{i}", t) for i, t in enumerate(workspace)]
        axes = tuple(
            (self.tracer.text(axis.size), here.edge)
            for axis, here in zip(self.op.axes(problem), self.op.axes(self.problem), strict=True)
            if not axis.exact
        )
        # What is fixed first: the rest was asked of calls that have it.
        conditions = [
            condition
            for name, value in self.problem.args
            if isinstance(value, TensorSpec)
            for condition in fixed(name, value, self.dynamic.get(name, ()))
        ]
        conditions = tuple(dict.fromkeys([*conditions, *self.tracer.asked()]))
        return TracedRow(conditions, axes, tuple(needed), launches)

    def _rely_on_derived(self, problem: Problem) -> None:
        """What the config derives from the sizes is as it was when it was made."""
        space, config = self.chosen.implementation.space, self.chosen.config
        known: dict[str, Any] = dict(config.knobs)
        for rule in space.derived:
            if not bool(rule.value(known, problem, self.target) == config[rule.name]):
                raise UntraceableError(f"the config's {rule.name} is another for symbols")
            known[rule.name] = config[rule.name]

    def _launch(self, launch: Launch) -> TracedLaunch:
        passed, types, blocks = [], [], []
        if any(isinstance(arg, TensorMap) for arg in launch.args):
            self._rely_on_narrow(launch)
        for arg in launch.args:
            one, type_, block = self._passed(arg)
            passed.append(one)
            types.append(type_)
            blocks.append(block)
        grid = [*map(self.tracer.text, launch.grid), "1", "1"][:3]
        return TracedLaunch(
            launch.kernel,
            tuple(passed),
            tuple(types),
            tuple(blocks),
            tuple((name, _constant(value)) for name, value in launch.constexprs.items()),
            tuple(sorted((name, _constant(value)) for name, value in launch.options.items())),
            (grid[0], grid[1], grid[2]),
        )

    def _rely_on_narrow(self, launch: Launch) -> None:
        """A descriptor's coordinates are 32-bit, and Triton compiles them with no other numbers."""
        for arg in launch.args:
            for number in arg.shape if isinstance(arg, TensorMap) else [arg]:
                if isinstance(number, (int, torch.SymInt)) and not number < NARROW:
                    raise UntraceableError(
                        f"{number} is past 32 bits, which {self.chosen.implementation.id} takes no "
                        "descriptor of"
                    )

    def _passed(self, arg: Any) -> tuple[Passed, str, tuple[int, ...]]:
        """An argument of a launch, its element type, and a descriptor's block."""
        if arg is None:
            return Passed("null"), "", ()
        if isinstance(arg, torch.Tensor):
            return Passed("tensor", self._name(arg)), element_type(arg.dtype, "a tensor"), ()
        if isinstance(arg, TensorMap):
            sizes, strides = (tuple(map(self.tracer.text, p)) for p in (arg.shape, arg.strides))
            one = Passed("descriptor", self._name(arg.tensor), sizes=sizes, strides=strides)
            block = tuple(map(int, arg.block))
            return one, element_type(arg.tensor.dtype, "a tensor"), block
        if isinstance(arg, (bool, torch.SymBool)):
            return Passed("constant", value=bool(arg)), "bool", ()
        if isinstance(arg, float):
            return Passed("constant", value=arg), "fp32", ()
        if isinstance(arg, torch.SymInt) and self.tracer.symbols(arg):
            type_ = "i32" if self.tracer.is_narrow(arg) else "int"
            return Passed("integer", self.tracer.text(arg)), type_, ()
        return Passed("integer", str(int(arg))), "int", ()

    def _name(self, tensor: torch.Tensor) -> str:
        for name, known in self.tensors:
            if known is tensor:
                return name
        raise UntraceableError("a launch passes a tensor that it made itself")


def _constant(value: Any) -> Any:
    """A constexpr or an option: asking for the value of a symbolic one compiles it in."""
    if isinstance(value, torch.SymInt):
        return int(value)
    if isinstance(value, torch.SymBool):
        return bool(value)
    return value
