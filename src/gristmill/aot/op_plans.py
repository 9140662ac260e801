"""From an operator of the library with its plans to kernels, and to what its calls launch.

Every launcher is a pure function from arguments and a config to launches. Run on symbols in place
of the sizes that a plan holds for a range of, it gives grids and arguments as expressions, and what
it asked of the sizes as conditions; the kernels are those that it names, compiled for the classes
of arguments that such calls have.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gristmill.aot.building import TIMEOUT_S, BuildReport, build, specifications
from gristmill.aot.functions import Condition, OpForm, OpFunction, OpLaunch, Row
from gristmill.aot.kernel import Kernel
from gristmill.aot.op_choice import Chosen, Plans, Source, chosen, source_of, target_of
from gristmill.aot.op_forms import Dims, Line, arguments_of, form_of, lines, relatives
from gristmill.aot.op_specs import Kernels
from gristmill.aot.op_trace import TracedRow, trace
from gristmill.aot.row_choice import holds, opposite, unmet
from gristmill.aot.symbolic import dynamic_dims, sizes_of
from gristmill.core.op import Op
from gristmill.core.plan import Objective
from gristmill.core.problem import Problem
from gristmill.core.registry import load
from gristmill.core.target import Target
from gristmill.errors import InvalidInputError, UnsupportedProblemError, did_you_mean

MOST_MET = 64  # rows on a line, before it is looked at in leaps
MOST_ROWS = 16  # of a line: a launcher that is held to single numbers gets no row for each


@dataclass(frozen=True)
class OpKernels:
    """An operator as it goes into an artifact.

    Attributes:
        function: what its calls launch.
        kernels: the kernels that they need, with their specifications.
        notes: what is not as the plans say: choices that are no kernels, problems that were left
            out, launchers that could not be followed.
    """

    function: OpFunction
    kernels: tuple[Kernel, ...]
    notes: tuple[str, ...]


@dataclass
class _Made:
    """A form while its rows are found. `edges` of each row: where its buckets end."""

    form: OpForm
    rows: list[tuple[tuple[int, ...], Row]] = field(default_factory=list)


def op_kernels(
    op: Op | str,
    targets: str | Target | Sequence[str | Target],
    *,
    problems: Iterable[Problem] | None = None,
    plans: Plans = None,
    objective: Objective = "graph",
) -> OpKernels:
    """An operator's calls as kernels, expressions and conditions.

    Args:
        op: an operator of the library, or its name.
        targets: architectures whose sizes are known (`sm_80`, `sm_90`, `sm_100`, `gfx942`), or
            targets.
        problems: what it is called with (default: the op's workloads). Sizes that a plan's bucket
            leaves open may be any in a call; weights are as they are here.
        plans: a pack or a lock file to take them from (default: the plan store and the shipped
            packs). What has no plan takes the untuned choice.
        objective: whose plans: `graph` goes by the time on the device alone.

    Raises:
        UnsupportedProblemError: no Triton kernel computes any of the problems; the message has the
            reasons.
        InvalidInputError: a target is unknown.
    """
    return _Builder(load(op) if isinstance(op, str) else op, objective).made(
        [targets] if isinstance(targets, (str, Target)) else list(targets), problems, plans
    )


def build_ops(
    out: str | os.PathLike[str],
    ops: Op | str | OpKernels | Sequence[Op | str | OpKernels],
    targets: str | Sequence[str],
    *,
    kernels: Sequence[Kernel] = (),
    problems: Mapping[str, Sequence[Problem]] | None = None,
    plans: Plans = None,
    jobs: int | None = None,
    strict: bool = True,
    timeout_s: float = TIMEOUT_S,
    name: str | None = None,
) -> BuildReport:
    """Compile operators of the library, and write an artifact whose manifest says what their calls
    launch (`Manifest.functions`).

    Args:
        ops: operators, their names, or what `op_kernels` made of them for these targets.
        problems: by operator, what it is called with (default: its workloads).
        kernels: further kernels for the same artifact.

    `out`, `targets`, `jobs`, `strict`, `timeout_s` and `name` are those of `build`, `plans` that of
    `op_kernels`, and so are the errors.
    """
    listed = [ops] if isinstance(ops, (Op, str, OpKernels)) else list(ops)
    given = _by_operator(problems, [_name(one) for one in listed])
    further = specifications(kernels) if kernels else []
    made = []
    for one in listed:
        if not isinstance(one, OpKernels):
            op = load(one) if isinstance(one, str) else one
            one = op_kernels(op, targets, problems=given.get(op.name), plans=plans)  # noqa: PLW2901
        made.append(one)
    if not made:
        raise InvalidInputError("there are no operators to build. Name one.")
    all_kernels = [*(kernel for one in made for kernel in one.kernels), *further]
    return build(
        out,
        all_kernels,
        targets,
        jobs=jobs,
        strict=strict,
        timeout_s=timeout_s,
        name=name,
        functions=tuple(one.function for one in made),
    )


def _name(op: Op | str | OpKernels) -> str:
    if isinstance(op, OpKernels):
        return op.function.name
    return op if isinstance(op, str) else op.name


def _by_operator(problems: Any, names: Sequence[str]) -> dict[str, list[Problem]]:
    """The problems of each operator, checked."""
    if not isinstance(problems, Mapping | None):
        raise InvalidInputError(
            f"`problems` is {type(problems).__name__}; it needs a mapping from operators to "
            'lists of problems. Pass `{"rms_norm": [problem_of(...)]}`, say.'
        )
    for name, listed in (problems or {}).items():
        if name not in names:
            raise InvalidInputError(
                f"`problems` names {name!r}; the operators are {', '.join(names)}. Name one "
                f"of them.{did_you_mean(str(name), names)}"
            )
        if not isinstance(listed, (list, tuple)) or not all(isinstance(p, Problem) for p in listed):
            raise InvalidInputError(
                f"`problems[{name!r}]` is {listed!r}; it needs a list of problems. Make them with "
                "`problem_of` of the operator's spec, or take a workload's."
            )
    return {name: list(listed) for name, listed in (problems or {}).items()}


class _Builder:
    """One operator on its way to kernels."""

    def __init__(self, op: Op, objective: Objective) -> None:
        self.op = op
        self.objective: Objective = objective
        self.kernels = Kernels()
        self.forms: dict[Any, _Made] = {}
        self.notes: dict[str, None] = {}

    def made(
        self,
        targets: Sequence[str | Target],
        problems: Iterable[Problem] | None,
        plans: Plans,
    ) -> OpKernels:
        named = problems if problems is not None else (w.problem for w in self.op.workloads)
        listed = list(dict.fromkeys(named))
        dims = {problem: dynamic_dims(self.op, problem) for problem in listed}
        for target in targets:
            source = source_of(plans, target_of(target))
            kept = [p for p in listed if self._add(p, dims[p], source, named=True) is not None]
            others = {r: dims[p] for p in kept for r in relatives(p, dims[p])}
            for problem, of in others.items():
                self._add_if_new(problem, of, source)
            # Problems that differ in the size alone have one line.
            whole = {line.at(0): line for p in kept for line in lines(p, dims[p])}
            for line in whole.values():
                self._cover(line, source)
        if not any(one.rows for one in self.forms.values()):
            raise UnsupportedProblemError(
                f"no problem of `{self.op.name}` is computed by a Triton kernel: "
                f"{'; '.join(self.notes) or 'there are none'}. Name others."
            )
        forms = tuple(
            replace(one.form, rows=_ordered(one.rows))  # type: ignore[type-var]
            for one in self.forms.values()
            if one.rows
        )
        function = OpFunction(self.op.name, self.op.schema, forms)
        return OpKernels(function, self.kernels.specifications(), tuple(self.notes))

    def _form(self, problem: Problem) -> _Made:
        key = arguments_of(self.op, problem)
        if key not in self.forms:
            self.forms[key] = _Made(form_of(self.op, problem))
        return self.forms[key]

    def _add(
        self,
        problem: Problem,
        dims: Dims,
        source: Source,
        named: bool = False,
        beyond: Sequence[Condition] | None = None,
    ) -> Row | None:
        """Add a problem's row, if there is one.

        `named`: somebody asked for it. `beyond`: further conditions of a row that is for a range of
        sizes or for none.
        """
        arch = source.target.arch
        try:
            one = chosen(self.op, problem, source, self.objective)
        except UnsupportedProblemError as error:
            if named:
                self.notes[f"{arch}: {error}"] = None
            return None
        if named and not one.planned:
            self.notes[f"{arch}: {problem}: {one.reason}"] = None
        traced = self._traced(problem, dims, source.target, one, alone=beyond is None)
        if traced is None:
            return None
        launches = tuple(self._launch(launch, arch) for launch in traced.launches)
        limits = tuple(
            Condition(text, "<=", str(edge)) for text, edge in traced.axes if not text.isdecimal()
        )
        row = Row(
            arch=arch,
            conditions=tuple(dict.fromkeys((*traced.conditions, *(beyond or ())))),
            limits=limits,
            workspace=traced.workspace,
            launches=launches,
            implementation=one.implementation.name,
            config=dict(one.config.knobs),
            reason=one.reason,
        )
        self._form(problem).rows.append((tuple(edge for _, edge in traced.axes), row))
        return row

    def _add_if_new(self, problem: Problem, dims: Dims, source: Source) -> None:
        """Add a row where none holds for such sizes within its limits."""
        sizes = sizes_of(problem.tensors)
        for _, row in self._form(problem).rows:
            asked = (*row.conditions, *row.limits)
            if row.arch == source.target.arch and all(holds(c, sizes) for c in asked):
                return
        self._add(problem, dims, source)

    def _cover(self, line: Line, source: Source) -> None:
        """Add rows to a line where none holds, each for where the row before it does not: that one
        goes on to serve what it served."""
        at, last, added, met = 0, None, 0, 0
        while at < len(line):
            problem = line.at(at)
            sizes = sizes_of(problem.tensors)
            row = self._holding(problem, sizes, source.target.arch)
            if row is None and added < MOST_ROWS:
                failed = unmet(last, sizes) if last else None
                beyond = [opposite(failed)] if failed else []
                row = self._add(problem, line.dims, source, beyond=beyond)
                added += 1
            met += 1
            if row is None or unmet(row, sizes) or met > MOST_MET:
                at, last = 2 * at + 1, None
            else:
                at, last = _end(row, line, at), row

    def _holding(self, problem: Problem, sizes: Mapping[str, int], arch: str) -> Row | None:
        rows = (row for _, row in self._form(problem).rows if row.arch == arch)
        return next((row for row in rows if unmet(row, sizes) is None), None)

    def _traced(
        self, problem: Problem, dims: Dims, target: Target, one: Chosen, alone: bool
    ) -> TracedRow | None:
        """The launches for every size that can be left open; where the launcher cannot be followed,
        for these `alone`, or none."""
        opened = {name: tuple(of) for name, of in dims.items()}
        try:
            return trace(self.op, problem, target, one, opened)
        except Exception as error:  # noqa: BLE001 - a launcher that is handed symbols raises anything
            if not alone:
                return None
            reason = str(error).partition("\n")[0]
            self.notes[f"{target.arch}: {problem}: for these sizes alone: {reason}"] = None
        return trace(self.op, problem, target, one, {})

    def _launch(self, launch: Any, arch: str) -> OpLaunch:
        kernel, arguments, warps, stages = self.kernels.add(launch, arch)
        return OpLaunch(kernel, arguments, launch.grid, warps, stages)


def _end(row: Row, line: Line, at: int) -> int:
    """The first index after `at` that a row does not hold for; it holds for all up to there."""

    def held(index: int) -> bool:
        return index < len(line) and unmet(row, sizes_of(line.at(index).tensors)) is None

    step = 1
    while held(at + step):
        at, step = at + step, 2 * step
    while step > 1:  # it holds at `at`, and not a step further
        step //= 2
        at += step * held(at + step)
    return at + 1


def _ordered(rows: Sequence[tuple[tuple[int, ...], Row]]) -> tuple[Row, ...]:
    """Rows from the smallest sizes up; of those that do the same, one with the widest limits."""
    found: dict[tuple[Any, ...], Row] = {}
    for _, row in sorted(rows, key=lambda pair: pair[0]):
        does = (row.arch, row.conditions, row.workspace, row.launches)
        of_sizes = (row.arch, row.conditions)
        last = next((k for k in reversed(found) if k[:2] == of_sizes), None)
        if last is not None and last == does:
            del found[last]
        key = does if does not in found else (*does, row.limits)
        found[key] = row
    return tuple(found.values())
