"""The conformance suite: what every registered implementation has to pass, third parties'
included."""

from gristmill.testing.cases import Case, cases, configs, fitted, layouts, problems
from gristmill.testing.conformance import judge
from gristmill.testing.mutation import mutated

__all__ = ["Case", "cases", "configs", "fitted", "judge", "layouts", "mutated", "problems"]
