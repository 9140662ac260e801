"""A call of a `@triton.jit` kernel as something to tune: what every config's launch is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from triton.runtime.autotuner import Heuristics

from gristmill.core.config import Config
from gristmill.core.plan import KERNEL
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.space import Space
from gristmill.tuners.arguments import CannotTravelError, tensors_of
from gristmill.tuners.choices import OPTIONS, Choices
from gristmill.tuners.travel import base_kernel, name_of, source_hash, text_hash
from gristmill.tuners.trial import Call


def values_of(space: Space, config: Config, parameters: Sequence[str]) -> dict[str, Any]:
    """What a config adds to a launch: its knobs, and of the derived values those that the kernel or
    the compiler takes."""
    if isinstance(space, Choices):
        return dict(space.values[config])
    taken = {*config.knobs, *parameters, *OPTIONS}
    return {name: value for name, value in config.items() if name in taken}


class Launches:
    """The launch of each config for one call: heuristics and grid worked out, in this process."""

    def __init__(
        self,
        kernel: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        grid: Any,
        values: Callable[[Config], Mapping[str, Any]],
    ) -> None:
        self._kernel, self._grid, self._values = kernel, grid, values
        self._named = named_arguments(kernel, args, kwargs)

    def __call__(self, config: Config) -> Call:
        """A config's grid, and what it and the heuristics add to the arguments."""
        keywords = dict(self._values(config))
        keywords.pop("pre_hook", None)
        named = {**self._named, **keywords}
        for rules in _heuristics(self._kernel):
            for name, rule in rules.items():
                keywords[name] = named[name] = rule(dict(named))
        shape: Any = self._grid(named) if callable(self._grid) else self._grid
        return Call(tuple(int(n) for n in shape), keywords)


def named_arguments(kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by the parameters' names, defaults included."""
    base = base_kernel(kernel)
    parameters = inspect.signature(base.fn).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**defaults, **dict(zip(base.arg_names, args, strict=False)), **kwargs}


def _heuristics(kernel: Any) -> Iterator[Any]:
    """The rules of each `@triton.heuristics` below the autotuner, the outermost first."""
    while hasattr(kernel, "fn") and kernel is not base_kernel(kernel):
        if isinstance(kernel, Heuristics):
            yield kernel.values
        kernel = kernel.fn


def problem_of(name: str, named: Mapping[str, Any]) -> Problem:
    """A call without its tensors' values: what the rules of a space see (of a descriptor, the
    tensor that it is of)."""

    def outline(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(outline(part) for part in value)
        tensor = tensors_of({"": value}).get("")
        return value if tensor is None else TensorSpec.of(tensor)

    return Problem(name, tuple((n, outline(value)) for n, value in named.items()))


def rules_hash(kernel: Any) -> str:
    """A hash of the heuristics' sources: what a config was measured with depends on them."""
    texts = (f"{n}:{text_hash(rule)}" for rules in _heuristics(kernel) for n, rule in rules.items())
    return ";".join(texts)


def store_name(function: Any) -> str:
    """What a kernel or function is called in the store."""
    return f"{KERNEL}{name_of(function).replace(':', '.')}"


def identity(kernel: Any) -> str:
    """The hash of a kernel, or nothing where its source is not to be had."""
    try:
        return source_hash(kernel)
    except CannotTravelError:
        return ""


def device_of(values: Sequence[Any]) -> torch.device:
    """The device of the first tensor that is not on the CPU (that one is pinned), of the first
    where all are, else the one that a launch would be on."""
    named = {str(index): value for index, value in enumerate(values)}
    devices = [tensor.device for tensor in tensors_of(named).values()]
    for found in sorted(devices, key=lambda device: device.type == "cpu"):
        return found
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
