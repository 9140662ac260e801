"""What a tuning run may spend, and what it gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gristmill.core.plan import Candidate, Objective, Outcome, Plan
from gristmill.errors import InvalidInputError
from gristmill.measure.conditions import Conditions


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a run may spend: seconds of wall clock, and Triton candidates (`None`: as many as
    fit).

    Vendor calls and the compiled reference are always measured: they are what the plan must not be
    slower than.

    Attributes:
        roofline_stop: end the search where the best candidate takes at most this share longer than
            the roofline (0.02: 2%), the longer of copying the op's bytes and doing its operations
            at the rate of a large matmul, both measured at the start of the run. `None`: search on.
    """

    seconds: float = 60.0
    trials: int | None = None
    roofline_stop: float | None = None

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
        share = self.roofline_stop
        if share is not None and (
            isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1
        ):
            raise InvalidInputError(
                f"`roofline_stop` is {share!r}; it needs a share from 0 to 1 (0.02: within 2% of "
                "the roofline), or None. Pass one."
            )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One outcome of a run, and when it was there.

    Attributes:
        elapsed_s: seconds since the run began to measure.
        stage: `search`; or `race`, which measures finalists again (a `slow` or failed one there was
            `ok` before).
    """

    candidate: Candidate
    outcome: Outcome
    elapsed_s: float
    stage: Literal["search", "race"] = "search"


@dataclass
class TuningResult:
    """What a run gave: every candidate's outcome, the plans by objective, and whether it was
    interrupted.

    Attributes:
        trajectory: every outcome in the order in which they came; a candidate that raced has two.
        ties: by objective, the candidates that could not be told apart from the fastest.
        skipped: why nothing was run.
        stopped: why the search ended before its budget, if it did.
        conditions: what the device was like meanwhile; its `warnings` are what to know of it.
    """

    outcomes: dict[Candidate, Outcome] = field(default_factory=dict, repr=False)
    plans: dict[Objective, Plan] = field(default_factory=dict)
    interrupted: bool = False
    skipped: str = ""
    stopped: str = ""
    seconds: float = 0.0
    trajectory: list[Evaluation] = field(default_factory=list, repr=False)
    ties: dict[Objective, tuple[Candidate, ...]] = field(default_factory=dict, repr=False)
    conditions: Conditions = field(default_factory=Conditions, repr=False)


class TuningInterrupted(KeyboardInterrupt):
    """Ctrl-C while tuning, with what was measured until then."""

    def __init__(self, result: TuningResult) -> None:
        kept = f"{len(result.outcomes)} candidates were measured and are kept"
        super().__init__(
            f"tuning was interrupted: {kept if result.outcomes else 'nothing is kept'}"
        )
        self.result = result
