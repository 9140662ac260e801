"""What a tuning run may spend, and what it gave."""

from __future__ import annotations

from dataclasses import dataclass, field

from gristmill.core.plan import Candidate, Objective, Outcome, Plan
from gristmill.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a run may spend: seconds of wall clock, and Triton candidates (`None`: as many as
    fit).

    Vendor calls and the compiled reference are always measured: they are what the plan must not be
    slower than.
    """

    seconds: float = 60.0
    trials: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, (int, float)):
            raise InvalidInputError(
                f"`budget` is {self.seconds!r}; it needs a number of seconds. Pass a float."
            )
        if self.trials is not None and type(self.trials) is not int:
            raise InvalidInputError(
                f"`trials` is {self.trials!r}; it needs an int or None. Pass one."
            )
        if not self.seconds > 0:
            raise InvalidInputError(
                f"`budget` is {self.seconds} seconds; it needs a positive number. Raise it."
            )
        if self.trials is not None and self.trials < 1:
            raise InvalidInputError(
                f"`trials` is {self.trials}; it needs at least 1, or None for no limit. Raise it."
            )


@dataclass
class TuningResult:
    """What a run gave: every candidate's outcome, the plans by objective, and whether it was
    interrupted."""

    outcomes: dict[Candidate, Outcome] = field(default_factory=dict, repr=False)
    plans: dict[Objective, Plan] = field(default_factory=dict)
    interrupted: bool = False
    skipped: str = ""  # why nothing was run
    seconds: float = 0.0
