"""Named suites: workloads of several ops under one name, to be run in one go."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from gristmill.core.op import Op, Workload
from gristmill.core.registry import load, op_names
from gristmill.errors import InvalidInputError, did_you_mean


@dataclass(frozen=True, slots=True)
class Suite:
    """Workloads by the pattern of their names, of every op that has some: a new op's join by their
    names."""

    name: str
    pattern: str
    doc: str

    def select(self, ops: Sequence[str] = ()) -> list[tuple[Op, list[Workload]]]:
        """The workloads of these ops, or of all, op by op.

        Raises:
            InvalidInputError: none of these ops is in the suite.
        """
        chosen = [(load(name), self._of(load(name))) for name in ops or op_names()]
        found = [(op, workloads) for op, workloads in chosen if workloads]
        if not found:
            raise InvalidInputError(
                f"`--suite` is {self.name!r}; {', '.join(ops)} has no workload {self.pattern!r}. "
                "Choose another suite, or leave out the op."
            )
        return found

    def _of(self, op: Op) -> list[Workload]:
        return [w for w in op.workloads if fnmatch.fnmatch(w.name, self.pattern)]


SUITES = (
    Suite("all", "*", "every named workload"),
    Suite("decode", "*-m1", "one token"),
    Suite("llama3-8b", "llama3-8b-*", "the layers of Llama-3-8B"),
    Suite("odd", "odd-*", "sizes that no tile divides"),
    Suite("sdxl", "sdxl-*", "the layers of Stable Diffusion XL"),
    Suite("square", "square-*", "square products"),
)


def suite_named(name: str) -> Suite:
    """The suite of this name.

    Raises:
        InvalidInputError: there is none.
    """
    for suite in SUITES:
        if suite.name == name:
            return suite
    known = [suite.name for suite in SUITES]
    raise InvalidInputError(
        f"`--suite` is {name!r}; there are {', '.join(known)}. Choose one."
        f"{did_you_mean(name, known)}"
    )
