"""The cases that an implementation is judged on: adversarial sizes, memory layouts and values, made
from its op.

Nothing here knows an op. Sizes come from the op's axes, layouts from its tensor arguments, values
from its variants; what the op's contract forbids is left out, by asking the contract.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from gristmill.core.config import Config
from gristmill.core.implementation import Implementation
from gristmill.core.op import Op
from gristmill.core.problem import Problem, TensorSpec, contiguous_strides
from gristmill.core.sampling import Sampler
from gristmill.core.target import Target
from gristmill.errors import InvalidInputError, NoValidConfigError
from gristmill.testing.covering import covering

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
    for form, kind, made in _arranged(op, problem, far):
        yield "-".join(filter(None, (form, kind))), made


@functools.lru_cache(maxsize=64)  # an op's implementations have their bases in common
def _arranged(op: Op, problem: Problem, far: bool = False) -> tuple[tuple[str, str, Problem], ...]:
    """What `layouts` gives, with the form's name apart from the layout's."""
    seen = {problem}
    found = [("", kind, made) for kind, made in _varied(op, problem, far, seen)]
    for name, form in op.forms(problem).items():
        if form not in seen and allowed(op, form):
            seen.add(form)
            found += [] if far else [(name, "", form)]
            found += [(name, kind, made) for kind, made in _varied(op, form, far, seen)]
    return tuple(found)


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

    Sizes (normal values); then layouts and value variants, in the prior and in drawn configs; then
    `configs_each` drawn configs a base, few rows of more than a tile among them. Of the last two,
    not every combination but enough for every pair: each layout in each dtype, form and base, each
    variant in each of them, each form in each dtype ... A further argument or form then adds
    cases, and multiplies none.
    """
    for implementation in implementations:
        kept = [str(d).removeprefix("torch.") for d in dtypes or implementation.op.dtypes]
        found = (
            _sized_cases(implementation, target, kept, largest, count),
            _varied_cases(implementation, target, kept, largest),
            _drawn_cases(implementation, target, kept, largest, configs_each),
        )
        yield from dict.fromkeys(itertools.chain(*found))  # small spaces are drawn from twice


def _sized_cases(
    implementation: Implementation,
    target: Target,
    dtypes: Sequence[str],
    largest: int,
    count: int,
) -> Iterator[Case]:
    """`problems`, in the prior config."""
    for label, problem in problems(implementation, target, count, largest):
        sized = next(iter(problem.tensors.values())).dtype in dtypes
        if sized and implementation.why_not(problem, target) is None:
            yield Case(implementation, problem, "normal", label=label)


def _varied_cases(
    implementation: Implementation, target: Target, dtypes: Sequence[str], largest: int
) -> Iterator[Case]:
    """Pairs of base, dtype, form, config (the prior or a drawn one), and a layout with normal
    values or a variant of the values in the plain layout: zeros would hide a wrong layout."""
    op = implementation.op
    rows: dict[tuple[str, ...], Problem] = {}
    for dtype in dtypes:
        for label, base in _bases(implementation, target, dtype, largest):
            for form, kind, problem in (("", "", base), *_arranged(op, base)):
                if implementation.why_not(problem, target) is None:
                    for variant in op.variants if not kind else ("normal",):
                        for config in ("prior", "drawn"):
                            rows[label, dtype, form, kind, variant, config] = problem
    keys = list(rows)
    for n in covering(keys):
        *words, variant, drawn = keys[n]
        config = _drawn(implementation, rows[keys[n]], target, n) if drawn == "drawn" else None
        label = "-".join(filter(None, words))
        yield Case(implementation, rows[keys[n]], variant, config, label)


def _drawn_cases(
    implementation: Implementation,
    target: Target,
    dtypes: Sequence[str],
    largest: int,
    each: int,
) -> Iterator[Case]:
    """Pairs of base, dtype, form and one of `each` draws; every draw has a config of its own."""
    rows: dict[tuple[str | int, ...], tuple[str, Problem]] = {}
    for dtype in dtypes:
        for label, base in _bases(implementation, target, dtype, largest, wide=True):
            for form, (name, problem) in enumerate(_forms(implementation.op, label, base)):
                if implementation.why_not(problem, target) is None:
                    for draw in range(each):
                        rows[label, dtype, form, draw] = name, problem
    keys = list(rows)
    for n in covering(keys):
        name, problem = rows[keys[n]]
        config = _drawn(implementation, problem, target, n)
        if config is not None:
            yield Case(implementation, problem, "normal", config, f"{name}-{keys[n][1]}")


def _drawn(
    implementation: Implementation, problem: Problem, target: Target, seed: int
) -> Config | None:
    """A config of the space; `None` (the prior) where it has no other, or none is found."""
    if implementation.space.size <= 1:
        return None
    try:
        return Sampler(implementation.space, problem, target).draw(random.Random(seed))
    except NoValidConfigError:
        return None


def _forms(op: Op, label: str, base: Problem) -> list[tuple[str, Problem]]:
    """A problem and its other forms, labelled."""
    return [(label, base), *((f"{label}-{name}", p) for name, p in op.forms(base).items())]


def _bases(
    implementation: Implementation, target: Target, dtype: str, largest: int, wide: bool = False
) -> list[tuple[str, Problem]]:
    """Problems to vary: sizes that tile well, and that do not; a batch, where the op has a fourth
    axis; with `wide`, also few rows of more than a tile (of a product: 256 at most)."""
    op = implementation.op
    assert op.sized is not None
    names = op.axis_names
    shapes: dict[str, tuple[int, ...]] = {"even": (64, 128, 96), "odd": (37, 131, 101)}
    if len(names) > 3:
        shapes["batch"] = (19, 67, 45, 3)
    if wide:
        shapes["wide"] = (3, 4100, 70) if len(names) < 3 else (3, 1030, 70)
    made = []
    for label, sizes in shapes.items():
        limit = largest if label != "wide" else max(sizes)
        capped = {name: min(size, limit) for name, size in zip(names, sizes, strict=False)}
        chosen = fitted(implementation, capped, dtype, target)
        made.append((label, op.sized(chosen, dtype)))
    return made
