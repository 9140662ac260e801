"""Whether outputs are right: comparison within an op's bounds, poisoned outputs, canaries."""

from gristmill.verify.comparison import Verdict, compare
from gristmill.verify.memory import Guard, guarded_empty, poison
from gristmill.verify.truth import truth

__all__ = ["Guard", "Verdict", "compare", "guarded_empty", "poison", "truth"]
