"""A config: the tuning constants of one implementation, frozen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Value = int | float | bool | str | None


class Config(Mapping[str, Value]):
    """An immutable, hashable mapping from knob to value, ordered by name; derived values ride along
    unhashed.

    Two configs are equal when their knobs are: what a space derives from the knobs, the problem and
    the target (`derived`) is recomputed, never stored.
    """

    __slots__ = ("_all", "_hash", "derived", "knobs")

    def __init__(
        self, knobs: Mapping[str, Value] | None = None, derived: Mapping[str, Value] | None = None
    ) -> None:
        self.knobs: dict[str, Value] = dict(sorted((knobs or {}).items()))
        self.derived: dict[str, Value] = dict(derived or {})
        self._all = {**self.knobs, **self.derived}
        self._hash = hash(tuple(self.knobs.items()))

    # A value of a config is an int, float, bool, str or None; callers know which from the knob's
    # declaration.
    def __getitem__(self, name: str) -> Any:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.knobs == other.knobs

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{k}={v!r}' for k, v in self.knobs.items())})"

    def __str__(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self.knobs.items()) or "-"

    @property
    def key(self) -> str:
        """The knobs as canonical JSON: the config's identity in the store."""
        return json.dumps(self.knobs, sort_keys=True, separators=(",", ":"))
