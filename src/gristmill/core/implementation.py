"""An implementation: one way to meet an op's contract on some devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from gristmill import settings
from gristmill.core.config import Config, Value
from gristmill.core.identity import source_hash
from gristmill.core.launch import Launch
from gristmill.core.op import Op
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.space import Space
from gristmill.core.target import Target, device_target
from gristmill.errors import InvalidConfigError, RegistrationError, UnsupportedProblemError
from gristmill.record import record

Kind = Literal["triton", "vendor", "compiled"]
Supports = Callable[[Problem, Target], "str | None"]
PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)  # whose memory is all that there is to them
Tensors = tuple[torch.Tensor, ...]
Launcher = Callable[[tuple[Any, ...], Tensors, Tensors, Config], tuple[Launch, ...]]


class Executor(Protocol):
    """What runs launches; `compile/` has the one there is, `registry.executor()` finds it."""

    def run(self, launches: Sequence[Launch]) -> None: ...


def _plain(value: Any) -> Any:
    """A tensor of the plain class that needs no gradient, without a copy."""
    if isinstance(value, torch.Tensor) and (value.requires_grad or type(value) is not torch.Tensor):
        return value.detach()
    return value


def anywhere(problem: Problem, target: Target) -> str | None:
    """The `supports` of an implementation with no limits of its own."""
    del problem, target
    return None


def no_workspace(problem: Problem, config: Config) -> tuple[TensorSpec, ...]:
    """The `workspace` of an implementation that needs none."""
    del problem, config
    return ()


def no_knobs(problem: Problem, target: Target) -> Mapping[str, Value]:
    """The `prior` of an implementation with nothing to tune."""
    del problem, target
    return {}


@record(eq=False, slots=False)
class Implementation:
    """One way to compute an op; callable by hand with the op's signature plus `config=None`.

    Attributes:
        op: the contract.
        name: unique within the op (`row`, `aten`, ...).
        kind: `triton` (has a `launcher`), `vendor` (a plain `call`), or `compiled` (`build` makes
            the callable and may take seconds).
        doc: when it wins.
        space, prior: what can be tuned, and the values to use untuned.
        supports: `None`, or the reason why this problem cannot be run here.
        workspace: scratch tensors that the launcher gets, uninitialised.
        preference: of what can run a problem with no plan, the highest is used (cuBLAS before an
            untuned GEMM; an untuned fused kernel before an unfused vendor call).
        native: a plain call of torch's: differentiable, and right in every mode and for every
            argument that the op's contract takes.
        source: the file whose content identifies it in the store.
    """

    op: Op
    name: str
    kind: Kind
    source: Path
    module: str
    preference: int = 0
    native: bool = False
    doc: str = ""
    space: Space = Space()
    prior: Callable[[Problem, Target], Mapping[str, Value]] = no_knobs
    supports: Supports = anywhere
    workspace: Callable[[Problem, Config], tuple[TensorSpec, ...]] = no_workspace
    launcher: Launcher | None = None
    call: Callable[..., Any] | None = None
    build: Callable[[Problem], Callable[..., Any]] | None = None
    executor: Callable[[], Executor] | None = None

    def __post_init__(self) -> None:
        given = {"triton": self.launcher, "vendor": self.call, "compiled": self.build}
        if given[self.kind] is None or sum(v is not None for v in given.values()) != 1:
            raise RegistrationError(
                f"{self.id}: kind {self.kind!r} needs exactly one of launcher (triton), call "
                f"(vendor), build (compiled)."
            )

    @property
    def id(self) -> str:
        return f"{self.op.name}/{self.name}"

    @cached_property
    def source_hash(self) -> str:
        """Identity in the store: the schema, the source file, the op's spec, and what they import
        from their own packages (`core.identity`)."""
        return source_hash(self.op, self.source, self.module)

    def why_not(self, problem: Problem, target: Target) -> str | None:
        """`None` where this implementation can run the problem, else the reason."""
        if self.kind == "triton" and not target.is_gpu and not settings.current().interpret:
            return "Triton kernels need a GPU"
        return self.supports(problem, target)

    def config(
        self, values: Mapping[str, Value] | None, problem: Problem, target: Target
    ) -> Config:
        """A checked config: these knob values, or the prior for `None`."""
        if values is not None and not isinstance(values, Mapping):
            raise InvalidConfigError(
                f"`config` is {type(values).__name__}; it needs a mapping from knob to value, or "
                "None. Pass a dict."
            )
        return self.space.config(
            self.prior(problem, target) if values is None else values, problem, target
        )

    def allocate(self, values: tuple[Any, ...], config: Config) -> tuple[Tensors, Tensors]:
        """Uninitialised outputs and workspace of a call, on its arguments' device."""
        problem, device = self.op.problem(values), self.op.device(values)
        outputs = tuple(spec.empty(device) for spec in self.op.outputs(problem))
        return outputs, tuple(spec.empty(device) for spec in self.workspace(problem, config))

    def launches(
        self, values: tuple[Any, ...], outputs: Tensors, workspace: Tensors, config: Config
    ) -> tuple[Launch, ...]:
        """The launches that fill `outputs` (Triton implementations)."""
        assert self.launcher is not None
        return self.launcher(values, outputs, workspace, config)

    def __call__(self, *args: Any, config: Mapping[str, Value] | None = None, **kwargs: Any) -> Any:
        """Run this implementation, with this config (`None`: its prior).

        Raises:
            InvalidInputError: the arguments break the op's contract.
            UnsupportedProblemError: this implementation cannot run the problem here, or it is a
                kernel and a gradient is asked for; the message says why.
            InvalidConfigError: `config` has an unknown key, a bad value or breaks a constraint.
        """
        values = self.op.bind(args, kwargs)
        if not self.native:
            self._refuse_more_than_values(values)
        elif config is None and self.call is not None:
            return self.call(*values)  # whatever the tensors stand for
        problem, target = self.op.problem(values), device_target(self.op.device(values))
        reason = self.why_not(problem, target)
        if reason is not None:
            raise UnsupportedProblemError(
                f"`{self.id}` cannot run {problem} on {target.name}: {reason}. "
                f"Call `gristmill.{self.op.name}(...)`, which chooses an implementation that can."
            )
        chosen = self.config(config, problem, target)
        if self.call is not None:
            return self.call(*values)
        if self.build is not None:
            return self.built(problem)(*values)
        assert self.executor is not None
        outputs, workspace = self.allocate(values, chosen)
        self.executor().run(self.launches(values, outputs, workspace, chosen))
        return outputs if len(outputs) != 1 else outputs[0]

    def built(self, problem: Problem) -> Callable[..., Any]:
        """What `build` makes for a problem, made once in a process.

        It sees the same kind of tensors in every mode: Dynamo guards on grad mode, inference mode,
        `Parameter` and `requires_grad`, and compiles again where one changes.
        """
        assert self.build is not None
        if problem not in self._built:
            compiled = self.build(problem)

            def call(*values: Any) -> Any:
                plain = [_plain(v) for v in values]
                if torch.is_inference_mode_enabled():
                    with torch.inference_mode(False), torch.no_grad():
                        return compiled(*plain)
                if not torch.is_grad_enabled():
                    return compiled(*plain)
                torch._C._set_grad_enabled(False)  # torch.no_grad() takes 4 us (2-core machine)
                try:
                    return compiled(*plain)
                finally:
                    torch._C._set_grad_enabled(True)

            self._built[problem] = call
        return self._built[problem]

    @cached_property
    def _built(self) -> dict[Problem, Callable[..., Any]]:
        return {}

    def _refuse_more_than_values(self, values: tuple[Any, ...]) -> None:
        """A kernel computes values: a gradient or a subclass's meaning would be lost silently."""
        for name, value in zip(self.op.names, values, strict=True):
            if not isinstance(value, torch.Tensor):
                continue
            if torch.is_grad_enabled() and value.requires_grad:
                reason = "requires a gradient"
            elif forward_ad.unpack_dual(value).tangent is not None:
                reason = "carries a tangent"
            elif type(value) not in PLAIN_TYPES or is_functorch_wrapped_tensor(value):
                reason = f"is a {type(value).__name__} that stands for more than its values"
            else:
                continue
            raise UnsupportedProblemError(
                f"`{name}` {reason}; `{self.id}` computes values only. Call it under "
                f"`torch.no_grad()` with plain tensors, or `gristmill.{self.op.name}(...)`."
            )
