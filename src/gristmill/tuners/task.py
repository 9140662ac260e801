"""One call of a user's kernel, as something to tune."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from gristmill.core.config import Config, Value
from gristmill.core.implementation import Kind
from gristmill.core.problem import Bucket, Problem
from gristmill.core.space import Space
from gristmill.core.target import Target
from gristmill.errors import InvalidConfigError, TuningError
from gristmill.tuners.arguments import Arguments, CannotTravelError, encode_values
from gristmill.tuners.choices import Choices, label
from gristmill.tuners.travel import is_jitted, pack
from gristmill.tuners.trial import NO_HOOKS, Call, Hooks, Terms
from gristmill.tuners.worker import TASK
from gristmill.tuning.timed import Effort

TRAVEL_BYTES = 1 << 30  # of arguments that cross to the worker through a file

Resolve = Callable[[Config], Call]


@dataclass(frozen=True)
class KernelTask:
    """One call of a user's kernel, to be tuned.

    Attributes:
        name: the kernel, in the store.
        key: what a plan of it is kept for.
        function: a `@triton.jit` kernel, or a Python function.
        arguments: those of the call, without what a config adds.
        problem: the call without its values, for the rules of a space.
        space: the configs.
        resolve: how a config is called; may raise, which is the config's outcome.
        source_hash: of the kernel; empty where nothing can be kept.
        terms, effort, hooks: how candidates are checked and timed.
        make_truth: gives what the outputs should be, by name.
    """

    name: str
    key: str
    function: Any
    arguments: Arguments
    problem: Problem
    space: Space
    resolve: Resolve
    source_hash: str
    terms: Terms
    effort: Effort = field(default_factory=Effort)
    hooks: Hooks = NO_HOOKS
    make_truth: Callable[[], Mapping[str, torch.Tensor]] | None = None

    @cached_property
    def truth(self) -> Mapping[str, torch.Tensor]:
        """What the outputs should be, worked out when it is needed."""
        return {} if self.make_truth is None else self.make_truth()

    @property
    def asked(self) -> Terms:
        """The terms, with the outputs that the reference knows of first."""
        if self.make_truth is None:
            return self.terms
        return replace(self.terms, outputs=tuple(dict.fromkeys((*self.truth, *self.terms.outputs))))

    @property
    def kind(self) -> Kind:
        """Kernels are searched."""
        return "triton"

    @property
    def interpreted(self) -> bool:
        """Whether Triton's interpreter runs the kernel."""
        return type(self.function).__name__ == "InterpretedFunction"

    @property
    def needs_gpu(self) -> bool:
        """Whether it is a kernel that is compiled."""
        return is_jitted(self.function) and not self.interpreted

    def bucket(self, problem: Problem) -> Bucket:
        """What a plan is kept for: the key."""
        del problem
        # two scripts' kernels of one name do not put each other's plans out
        return Bucket(self.name, (), f"{self.key},source={self.source_hash}")

    def axes(self, problem: Problem) -> tuple[()]:
        """No size is rounded: a plan has no neighbours."""
        del problem
        return ()

    def why_not(self, problem: Problem, target: Target) -> str | None:
        """Whoever calls a kernel knows that it runs here."""
        del problem, target
        return None

    def config(
        self, values: Mapping[str, Value] | None, problem: Problem, target: Target
    ) -> Config:
        """A checked config: these values, or the first of the space for `None`."""
        if values is not None:
            return self.space.config(values, problem, target)
        found = next(self.space.valid(problem, target), None)
        if found is None:
            reasons = self.space.rejections(problem, target)
            raise TuningError(
                f"{problem} has no valid config: {dict(reasons)}. Loosen the constraints of "
                "`space`, or add values."
            )
        return found

    def holds(self, config: Config, target: Target) -> bool:
        """Whether this is one of the configs."""
        try:
            self.config(config, self.problem, target)
        except InvalidConfigError:
            return False
        return True

    def why_not_travel(self) -> str:
        """Why this cannot be tried in a worker, or an empty string."""
        if self.hooks:
            return "a hook or `do_bench` is a function of yours"
        for value in self.arguments.opaque():
            return f"an argument is a {type(value).__name__}"
        if isinstance(self.space, Choices):
            for values in self.space.values.values():
                try:
                    encode_values(values)
                except CannotTravelError as error:
                    return f"of {label(values)}, {error}"
        if self.arguments.size_bytes > TRAVEL_BYTES:
            size_gib = self.arguments.size_bytes / (1 << 30)
            return f"the arguments' memory is {size_gib:.1f} GiB"
        return self._why_not_pack

    @cached_property
    def _why_not_pack(self) -> str:
        try:
            pack(self.function)
        except CannotTravelError as error:
            return str(error)
        return ""

    def save(self, folder: Path) -> None:
        """Write everything that a worker needs into a folder.

        Raises:
            CannotTravelError: something has no description.
        """
        truth = Arguments.of((), self.truth).save(folder, "truth") if self.truth else None
        task = {
            "function": pack(self.function),
            "arguments": self.arguments.save(folder, "arguments"),
            "truth": truth,
            "terms": asdict(self.asked),
            "effort": asdict(self.effort),
        }
        (folder / TASK).write_text(json.dumps(task))
