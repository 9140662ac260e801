"""The conformance suite: what every registered implementation has to pass, third parties'
included."""

from gristmill.testing.cases import Case, cases, configs, layouts, problems
from gristmill.testing.conformance import judge
from gristmill.testing.mutation import mutated

__all__ = ["Case", "cases", "configs", "judge", "layouts", "mutated", "problems"]
