"""`explain`: why a problem's plan is what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.core.plan import Objective
from gristmill.ops.tune import ask
from gristmill.selection.explain import Explanation, explain_problem


def explain(
    op: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    objective: Objective = "eager",
) -> Explanation:
    """Every candidate of this problem that was measured, its time and error, and why it was chosen
    or not.

    `print` it for a table. Measures nothing, and needs no tuning first.
    """
    spec, _, problem, target = ask(op, args, kwargs, objective)
    return explain_problem(spec, problem, target, objective)
