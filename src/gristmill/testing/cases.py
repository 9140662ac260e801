"""The cases that an implementation is judged on: adversarial sizes, memory layouts and values, made
from its op.

Nothing here knows an op. Sizes come from the op's axes, layouts from its tensor arguments, values
from its variants; what the op's contract forbids is left out, by asking the contract.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from gristmill.core.config import Config
from gristmill.core.implementation import Implementation
from gristmill.core.op import Op
from gristmill.core.problem import Problem, TensorSpec, contiguous_strides
from gristmill.core.target import Target
from gristmill.errors import InvalidInputError

SIZES = (0, 1, 2, 7, 16, 17, 31, 63, 64, 65, 127, 128, 129, 257, 1000)
LARGEST_BATCH = 2
FAR_ELEMENTS = 2**31  # where 32-bit offsets end


@dataclass(frozen=True)
class Case:
    """One thing to try: an implementation on a problem, with values of a variant, in one config
    (`None`: the prior)."""

    implementation: Implementation
    problem: Problem
    variant: str
    config: Config | None = None
    label: str = field(default="", compare=False)

    def __str__(self) -> str:
        parts = (self.implementation.name, self.label or str(self.problem), self.variant)
        return "-".join(parts) + (f"-{self.config}" if self.config is not None else "")


def _contiguous(spec: TensorSpec) -> TensorSpec:
    return TensorSpec.contiguous(spec.shape, spec.dtype)


def _padded(spec: TensorSpec, by: int) -> TensorSpec:
    """Rows cut out of wider ones."""
    wide = (*spec.shape[:-1], spec.shape[-1] + by)
    return replace(spec, strides=contiguous_strides(wide))


def _transposed(spec: TensorSpec, first: int, second: int) -> TensorSpec:
    if len(spec.shape) < 2:
        return spec
    order = list(range(len(spec.shape)))
    order[first], order[second] = order[second], order[first]
    swapped = contiguous_strides([spec.shape[i] for i in order])
    strides = tuple(swapped[order.index(d)] for d in range(len(order)))
    return replace(spec, strides=strides)


def _broadcast(spec: TensorSpec) -> TensorSpec:
    if len(spec.shape) < 2:
        return spec
    return replace(spec, strides=(0, *contiguous_strides(spec.shape)[1:]))


def _far(spec: TensorSpec) -> TensorSpec:
    """The last row starts past 2**31 elements."""
    if len(spec.shape) < 2 or spec.shape[0] < 2:
        return spec
    step = -(-FAR_ELEMENTS // (spec.shape[0] - 1))
    return replace(spec, strides=(step + -step % 64, *contiguous_strides(spec.shape)[1:]))


def _far_apart(spec: TensorSpec, dim: int) -> TensorSpec:
    """The second half of a dimension starts past 2**31 elements, so that the step from one block of
    it to the next is past 32 bits; the other dimension is dense."""
    if len(spec.shape) != 2 or spec.shape[dim] < 2:
        return spec
    strides = [1, 1]
    strides[dim] = max(-(-FAR_ELEMENTS // (spec.shape[dim] // 2)), spec.shape[1 - dim])
    return replace(spec, strides=tuple(strides))


FAR_LAYOUTS: dict[str, Callable[[TensorSpec], TensorSpec]] = {
    "far": _far,
    "far-rows": lambda spec: _far_apart(spec, 0),
    "far-columns": lambda spec: _far_apart(spec, 1),
}
LAYOUTS: dict[str, Callable[[TensorSpec], TensorSpec]] = {
    "contiguous": _contiguous,
    "sliced": lambda spec: _padded(spec, 16),
    "ragged": lambda spec: _padded(spec, 1),
    "transposed": lambda spec: _transposed(spec, -2, -1),
    "outer-transposed": lambda spec: _transposed(spec, 0, 1) if len(spec.shape) > 2 else spec,
    "broadcast": _broadcast,
    "misaligned": lambda spec: replace(spec, aligned=False),
}


def allowed(op: Op, problem: Problem) -> bool:
    """Whether the op's contract takes this problem."""
    try:
        op.validate(problem.meta())
    except InvalidInputError:
        return False
    return True


def layouts(op: Op, problem: Problem, far: bool = False) -> Iterator[tuple[str, Problem]]:
    """The problem, and each of its other forms, with each tensor argument in each layout that the
    contract allows, or absent where it is optional.

    `far`: only the layouts that reach past 2**31 elements (gigabytes).
    """
    seen = {problem}
    for kind, made in _varied(op, problem, far, seen):
        yield kind, made
    for name, form in op.forms(problem).items():
        if form not in seen and allowed(op, form):
            seen.add(form)
            if not far:
                yield name, form
            for kind, made in _varied(op, form, far, seen):
                yield f"{name}-{kind}", made


def _varied(
    op: Op, problem: Problem, far: bool, seen: set[Problem]
) -> Iterator[tuple[str, Problem]]:
    makers = FAR_LAYOUTS if far else LAYOUTS
    for position, (name, arg) in enumerate(problem.args):
        if not isinstance(arg, TensorSpec):
            continue
        variants: dict[str, TensorSpec | None] = {kind: make(arg) for kind, make in makers.items()}
        if str(op.parsed.arguments[position].type).startswith("Optional[") and not far:
            variants["absent"] = None
        for kind, changed in variants.items():
            args = (*problem.args[:position], (name, changed), *problem.args[position + 1 :])
            made = Problem(problem.op, args)
            if made not in seen and allowed(op, made):
                seen.add(made)
                yield f"{name}-{kind}", made


def fitted(
    implementation: Implementation, sizes: Mapping[str, int], dtype: str, target: Target
) -> dict[str, int]:
    """`sizes`, with the first axis, those after the third, or both made 1 where the implementation
    takes nothing else."""
    names, sized = implementation.op.axis_names, implementation.op.sized
    for ones in ([], names[:1], names[3:], names[:1] + names[3:]):
        chosen = {**sizes, **dict.fromkeys(ones, 1)}
        if sized is None or implementation.why_not(sized(chosen, dtype), target) is None:
            return chosen
    return dict(sizes)


def problems(
    implementation: Implementation, target: Target, count: int, largest: int, seed: int = 0
) -> list[tuple[str, Problem]]:
    """`count` problems of adversarial sizes up to `largest` (after the third axis, `LARGEST_BATCH`)
    in every dtype and form in turn, each axis's every size met first (see `fitted`).

    Raises:
        ValueError: the op declares no `sized`.
    """
    op = implementation.op
    if op.sized is None:
        raise ValueError(
            f"the op {op.name!r} declares no `sized`; add it to make problems of given sizes."
        )
    source = random.Random(seed)
    names = op.axis_names
    limits = {name: largest if i < 3 else LARGEST_BATCH for i, name in enumerate(names)}
    columns = {
        name: _shuffled([s for s in SIZES if s <= limit], source, count)
        for name, limit in limits.items()
    }
    dtypes = [str(d).removeprefix("torch.") for d in op.dtypes]
    made = []
    for i in range(count):
        dtype = dtypes[i % len(dtypes)]
        drawn = {name: columns[name][i] for name in names}
        chosen = fitted(implementation, drawn, dtype, target)
        label = "x".join(str(s) for s in chosen.values()) + f"-{dtype}"
        forms = _forms(op, label, op.sized(chosen, dtype))
        made.append(forms[i % len(forms)])
    return made


def _shuffled(sizes: Sequence[int], source: random.Random, count: int) -> list[int]:
    out: list[int] = []
    while len(out) < count:
        out += source.sample(sizes, len(sizes))
    return out[:count]


def configs(
    implementation: Implementation, problem: Problem, target: Target, count: int, seed: int = 0
) -> list[Config]:
    """Up to `count` different valid configs of the space, drawn evenly."""
    space, source = implementation.space, random.Random(seed)
    found: dict[Config, None] = {}
    for _ in range(200 * count):
        if len(found) == count or space.size <= 1:
            break
        point = space.at(source.randrange(space.size), problem, target)
        if isinstance(point, Config):
            found.setdefault(point)
    return list(found)


def cases(
    implementations: Iterable[Implementation],
    target: Target,
    *,
    count: int = 30,
    largest: int = 1000,
    dtypes: Sequence[torch.dtype] | None = None,
    configs_each: int = 2,
) -> Iterator[Case]:
    """Every case of these implementations that they support on `target`.

    Sizes (normal values), then layouts and value variants at two sizes, then random configs; of a
    problem's other forms the layouts, and a config each.
    """
    for implementation in implementations:
        op = implementation.op
        kept = [str(d).removeprefix("torch.") for d in dtypes or op.dtypes]
        sized = [
            (label, p)
            for label, p in problems(implementation, target, count, largest)
            if next(iter(p.tensors.values())).dtype in kept
        ]
        plan = [(label, p, "normal") for label, p in sized]
        for dtype in kept:
            for label, base in _bases(implementation, target, dtype, largest):
                plan += [(f"{label}-{kind}", p, "normal") for kind, p in layouts(op, base)]
                plan += [(label, base, variant) for variant in op.variants]
        for label, problem, variant in plan:
            if implementation.why_not(problem, target) is None:
                yield Case(implementation, problem, variant, label=label)
        bases = (_bases(implementation, target, dtype, largest, wide=True) for dtype in kept)
        for base in itertools.chain.from_iterable(bases):
            for index, (label, problem) in enumerate(_forms(op, *base)):
                if implementation.why_not(problem, target) is None:
                    each = 1 if index else configs_each
                    for config in configs(implementation, problem, target, each):
                        yield Case(implementation, problem, "normal", config, label)


def _forms(op: Op, label: str, base: Problem) -> list[tuple[str, Problem]]:
    """A problem and its other forms, labelled."""
    return [(label, base), *((f"{label}-{name}", p) for name, p in op.forms(base).items())]


def _bases(
    implementation: Implementation, target: Target, dtype: str, largest: int, wide: bool = False
) -> list[tuple[str, Problem]]:
    """Problems to vary: sizes that tile well, and that do not; a batch, where the op has a fourth
    axis; with `wide`, also few rows of more than a tile."""
    op = implementation.op
    assert op.sized is not None
    names = op.axis_names
    shapes: dict[str, tuple[int, ...]] = {"even": (64, 128, 96), "odd": (37, 131, 101)}
    if len(names) > 3:
        shapes["batch"] = (19, 67, 45, 3)
    if wide:
        shapes["wide"] = (3, 4100, 70)
    made = []
    for label, sizes in shapes.items():
        limit = largest if label != "wide" else max(sizes)
        capped = {name: min(size, limit) for name, size in zip(names, sizes, strict=False)}
        chosen = fitted(implementation, capped, dtype, target)
        made.append((f"{label}-{dtype}", op.sized(chosen, dtype)))
    return made
