"""Whether outputs are right: guarded runs, comparison within an op's bounds, poison, canaries."""

from gristmill.verify.comparison import Verdict, compare
from gristmill.verify.memory import Guard, guarded_empty, poison
from gristmill.verify.run import kept, put_back, run_guarded, same_bits
from gristmill.verify.truth import truth

__all__ = [
    "Guard",
    "Verdict",
    "compare",
    "guarded_empty",
    "kept",
    "poison",
    "put_back",
    "run_guarded",
    "same_bits",
    "truth",
]
