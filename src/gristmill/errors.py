"""The exception tree: one class per kind of mistake, each also the built-in class a caller would
expect."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GristmillError(Exception):
    """Root of every error that gristmill raises on purpose."""


class InvalidInputError(GristmillError, ValueError):
    """An argument breaks the op's contract. The message names it, what it was, what is allowed and
    what to do."""


class UnsupportedProblemError(GristmillError, NotImplementedError):
    """No implementation takes this problem on this device; the message lists each one's reason."""


class UnknownOpError(GristmillError, LookupError):
    """No op of this name is registered; the message suggests near names."""


class InvalidConfigError(GristmillError, ValueError):
    """A config has an unknown key, a value outside its knob, or breaks a constraint of its
    space."""


class RegistrationError(GristmillError, RuntimeError):
    """An op or implementation is declared inconsistently or twice."""


class TuningError(GristmillError, RuntimeError):
    """Tuning cannot start or cannot produce a plan."""


class StrategyError(TuningError):
    """A search strategy raised, or proposed what cannot be measured."""


class WorkerLostError(TuningError):
    """The process that measures does not start, or its machine is gone; what was measured until
    then is kept."""


class NoValidConfigError(TuningError):
    """A space has no valid config that could be found; the message has the reasons that rejected
    most."""


class CacheError(GristmillError, RuntimeError):
    """The plan store was asked for something explicit that it cannot do (selection never raises
    it)."""


class PackError(GristmillError, ValueError):
    """A pack of plans is missing, damaged, or of a version that this one does not read; the message
    names the line."""


class FrozenError(GristmillError, RuntimeError):
    """Plans are frozen, and what was asked would change them, is not among them, or finds their
    lock file missing, damaged or of other kernels."""


class CompileError(GristmillError, RuntimeError):
    """A kernel does not compile, or its binary does not fit the target."""


class IncompleteBuildError(CompileError):
    """Kernels of an ahead-of-time build do not compile; the message names them, `report` has every
    one, and what did compile is written."""

    def __init__(self, message: str, report: object) -> None:
        super().__init__(message)
        self.report = report


class MissingExtraError(GristmillError, ImportError):
    """An optional dependency is not installed; the message names the extra that has it."""


class ArtifactError(GristmillError, RuntimeError):
    """An ahead-of-time artifact is damaged or does not match."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest known names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
