"""The activations that contracts name: formulas, slopes, and how far float32 may be from either.

silu(z) = z * sigmoid(z)                                    (Elfwing et al., 2018)
gelu(z) = z * Phi(z), Phi the normal distribution's         (Hendrycks & Gimpel, 2016)
its approximation = z * (1 + tanh(u)) / 2 = z * sigmoid(2u),
    u = sqrt(2 / pi) * (z + 0.044715 * z**3)
relu2(z) = max(z, 0)**2                                     (So et al., 2021)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from gristmill.core.op import Bounds
from gristmill.core.problem import Problem, TensorSpec
from gristmill.errors import InvalidInputError, did_you_mean
from gristmill.record import record

FLOOR = 2.0**-105  # in units of twelve roundings, 2^-24: a sigmoid below 2^-126 may be flushed
INNER = 2 * math.sqrt(2 / math.pi)  # of `2u`, with
CUBIC = 0.044715
SATURATED = 6.0  # past it tanh(u) is 1 in float32, and nothing is left to cancel
Elementwise = Callable[[torch.Tensor], torch.Tensor]


@record(eq=False)
class Activation:
    """An activation function.

    Attributes:
        name: what kernels know it by.
        value, slope: the function and its derivative: plain torch, differentiable.
        value_magnitude, slope_magnitude: either with no cancellation, times what it moves by where
            an argument within is rounded (see `core.op.Bounds`).
        roundings: of float32 in the value times another factor, and in the slope times two.
        reason: why the magnitudes are what they are.
        flops: of the value, and of the slope beyond it.
    """

    name: str
    value: Elementwise
    slope: Elementwise
    value_magnitude: Elementwise
    slope_magnitude: Elementwise
    roundings: tuple[int, int]
    reason: str
    flops: tuple[int, int]

    def bounds(self, x: TensorSpec, backward: bool) -> Bounds:
        """The bounds of a result of the dtype of `x`."""
        info, count = torch.finfo(x.torch_dtype), self.roundings[backward]
        return Bounds(
            rtol=info.eps / 2,
            gamma=count * 2.0**-24,
            atol=info.smallest_normal * info.eps + 4 * torch.finfo(torch.float32).smallest_normal,
            reason=f"one rounding to {x.dtype}; {count} of float32, {self.reason}",
        )


def _sensitivity(z: torch.Tensor) -> torch.Tensor:
    """What a relative change of `z` moves its sigmoid by, relatively: far below zero, the rounding
    of the exponential's argument is as many times larger in its value."""
    return 1 + z.abs() * torch.sigmoid(-z)


def _silu_slope(z: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))


def _silu_magnitude(z: torch.Tensor) -> torch.Tensor:
    return z.abs() * (torch.sigmoid(z) * _sensitivity(z) + FLOOR)


def _silu_slope_magnitude(z: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(z) * _sensitivity(z) ** 2 + FLOOR * (1 + z.abs())


SILU = Activation(
    name="silu",
    value=torch.nn.functional.silu,
    slope=_silu_slope,
    value_magnitude=_silu_magnitude,
    slope_magnitude=_silu_slope_magnitude,
    # An approximate exponential (3) and quotient (4), a sum, two products; four more of the slope.
    roundings=(12, 16),
    reason="of which the exponential's argument counts as often as the gate is large; the slope's "
    "two terms cancel around -1.28; a sigmoid below 2^-126 may be flushed",
    flops=(4, 4),
)


def _cdf(z: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))


def _density(z: torch.Tensor) -> torch.Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


GELU = Activation(
    name="gelu",
    value=lambda z: z * _cdf(z),
    slope=lambda z: _cdf(z) + z * _density(z),
    value_magnitude=torch.abs,
    slope_magnitude=lambda z: 1 + z.abs() * _density(z) * (1 + z * z),
    # erf (2 ulp) and its argument, a sum, three products; the density's exponential and argument.
    roundings=(12, 16),
    reason="in units of what 1 + erf adds up, which cancels on the left: ATen's tail is zero past "
    "-5.5; the slope's density counts its argument's rounding, z**2 / 2 times over",
    flops=(20, 6),
)


def _tanh_inner(z: torch.Tensor) -> torch.Tensor:
    """Twice the derivative of `u`."""
    return INNER * (1 + 3 * CUBIC * z * z)


def _tanh_side(z: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(INNER * (z + CUBIC * z * z * z))


def _tanh_slope(z: torch.Tensor) -> torch.Tensor:
    side, rest = _tanh_side(z), _tanh_side(-z)
    return side + z * (side * rest) * _tanh_inner(z)


def _tanh_slope_magnitude(z: torch.Tensor) -> torch.Tensor:
    near = z.abs().clamp(max=SATURATED)
    return 1 + near * _tanh_inner(near) / 2


GELU_TANH = Activation(
    name="gelu_tanh",
    value=lambda z: z * _tanh_side(z),
    slope=_tanh_slope,
    value_magnitude=torch.abs,
    slope_magnitude=_tanh_slope_magnitude,
    # tanh (2 ulp) and its argument's four, a sum, three products.
    roundings=(12, 16),
    reason="in units of what 1 + tanh adds up, which cancels on the left; in the slope, of what "
    "1 - tanh**2 cancels, times z and the derivative of tanh's argument, until tanh is 1",
    flops=(12, 8),
)


def _positive_square(z: torch.Tensor) -> torch.Tensor:
    return torch.relu(z).square()


RELU2 = Activation(
    name="relu2",
    value=_positive_square,
    slope=lambda z: 2 * torch.relu(z),
    value_magnitude=lambda z: _positive_square(z) + 2.0**-100,
    slope_magnitude=lambda z: 2 * torch.relu(z),
    roundings=(3, 3),  # a square and a product; two products
    reason="of products alone; a square below 2^-126 may be flushed",
    flops=(2, 1),
)


@record(eq=False)
class Choice:
    """Which activations an op has: one, or one for each value of an argument of its own.

    Attributes:
        activations: by that argument's value, the default first.
        argument: its name, or "" for an op of one activation. It is the schema's last.
    """

    activations: Mapping[str, Activation]
    argument: str = ""

    @property
    def schema(self) -> str:
        """The argument in the op's schema, after a comma."""
        return f', str {self.argument}="{next(iter(self.activations))}"' if self.argument else ""

    @property
    def default(self) -> tuple[tuple[str, str], ...]:
        """The argument and its default, where there is one."""
        return ((self.argument, next(iter(self.activations))),) if self.argument else ()

    def of(self, *given: str) -> Activation:
        """The activation of a call, from what it gave for the argument, if anything."""
        return self.activations[given[0] if given else next(iter(self.activations))]

    def given(self, problem: Problem) -> tuple[str, ...]:
        """What a problem has for the argument."""
        return (problem[self.argument],) if self.argument else ()

    def in_problem(self, problem: Problem) -> Activation:
        """The activation that a problem asks for."""
        return self.of(*self.given(problem))

    def check(self, op: str, *given: str) -> None:
        """Refuse a value that no activation has."""
        if given and given[0] not in self.activations:
            known = " or ".join(map(repr, self.activations))
            raise InvalidInputError(
                f"`{self.argument}` is {given[0]!r}; `{op}` takes {known}. Pass one of "
                f"them.{did_you_mean(given[0], tuple(self.activations))}"
            )

    def others(self, problem: Problem) -> dict[str, Problem]:
        """The problem with each other activation, by the argument's value."""
        made = {}
        for value in list(self.activations)[1:]:
            args = tuple((n, value if n == self.argument else v) for n, v in problem.args)
            made[value] = Problem(problem.op, args)
        return made


GELUS = Choice({"none": GELU, "tanh": GELU_TANH}, "approximate")  # torch's words
