"""The angles of rotary embeddings by position: frequencies, and the scalings that stretch a model's
context, by their published formulas in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from gristmill.errors import InvalidInputError, did_you_mean

Frequencies = list[float]
SAME_ENDS = 0.001  # what a ramp between two equal ends is widened by


def frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None
) -> tuple[Frequencies, float]:
    """The angle by which each pair turns from a position to the next one, and the factor of the
    tables (1 but for YaRN).

    Raises:
        InvalidInputError: an odd or negative `head_dim`, or a `theta` or scaling out of range.
    """
    if head_dim < 0 or head_dim % 2:
        raise InvalidInputError(
            f"`head_dim` is {head_dim}; `rope_tables` needs an even number, 0 or more, of columns "
            "to turn. Pass the part of a head that is turned."
        )
    if not (math.isfinite(theta) and theta > 0):
        raise InvalidInputError(
            f"`theta` is {theta}; `rope_tables` needs a finite number above 0. Pass one such as "
            "10000.0."
        )
    kind, values = _read(scaling) if scaling is not None else ("default", {})
    own = values.pop("rope_theta", theta)  # transformers 5 has it there
    if own != theta:
        raise InvalidInputError(
            f"`scaling` has the rope_theta {own} and `theta` is {theta}; `rope_tables` turns by "
            f"one. Pass `theta={own}`, as the scaling's model has it."
        )
    plain = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    return _SCALINGS[kind][0](plain, theta, values)


def _read(scaling: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of a scaling and its values, defaults filled in."""
    if not isinstance(scaling, Mapping):
        raise InvalidInputError(
            f"`scaling` is {type(scaling).__name__}; `rope_tables` needs a mapping, as the "
            "`rope_scaling` of a model's configuration, or None. Pass a dict."
        )
    given = dict(scaling)
    old = given.pop("type", None)  # its name before transformers 4.43
    kind = given.pop("rope_type", old)
    if kind not in _SCALINGS:
        raise InvalidInputError(
            f"`scaling` has the rope_type {kind!r}; `rope_tables` knows {', '.join(_SCALINGS)}. "
            f"Choose one.{did_you_mean(str(kind), _SCALINGS)}"
        )
    _, needed, defaults = _SCALINGS[kind]
    known = (*needed, *defaults)
    for name in given:
        if name not in (*known, "rope_theta"):
            raise InvalidInputError(
                f"`scaling` has the key {name!r}, which {kind!r} does not have; it has "
                f"{', '.join(known) or 'none'}. Remove or rename it.{did_you_mean(name, known)}"
            )
    values = {**defaults, **given}
    for name in needed:
        if name not in values:
            raise InvalidInputError(
                f"`scaling` lacks the key {name!r}; {kind!r} needs {', '.join(needed)}. Add it."
            )
    for name, value in values.items():
        number = type(value) in (int, float) and math.isfinite(value) and value >= 0
        if not (number or type(value) is bool or (value is None and name not in needed)):
            raise InvalidInputError(
                f"`scaling` has {name!r} = {value!r}; {kind!r} needs a finite number, 0 or more. "
                "Correct it."
            )
        if name in needed and value == 0:
            raise InvalidInputError(
                f"`scaling` has {name!r} = {value!r}; {kind!r} needs more than 0. Correct it."
            )
    return kind, values


def _plain(
    plain: Frequencies, theta: float, values: Mapping[str, Any]
) -> tuple[Frequencies, float]:
    del theta, values
    return plain, 1.0


def _linear(
    plain: Frequencies, theta: float, values: Mapping[str, Any]
) -> tuple[Frequencies, float]:
    """Position interpolation (Chen et al., "Extending Context Window of Large Language Models via
    Positional Interpolation", 2023)."""
    del theta
    return [f / values["factor"] for f in plain], 1.0


def _llama3(
    plain: Frequencies, theta: float, values: Mapping[str, Any]
) -> tuple[Frequencies, float]:
    """Llama 3.1's ("The Llama 3 Herd of Models", 2024; its reference code): waves longer than the
    context are slowed down, short ones are not, and between there is a line."""
    del theta
    factor, low, high = (values[n] for n in ("factor", "low_freq_factor", "high_freq_factor"))
    if not high > low:
        raise InvalidInputError(
            f"`scaling` has high_freq_factor = {high} and low_freq_factor = {low}; 'llama3' needs "
            "the first to be larger. Correct them."
        )
    made = []
    for f in plain:
        waves = values["original_max_position_embeddings"] * f / (2 * math.pi)
        share = min(1.0, max(0.0, (waves - low) / (high - low)))
        made.append((1 - share) * f / factor + share * f)
    return made, 1.0


def _yarn(plain: Frequencies, theta: float, values: Mapping[str, Any]) -> tuple[Frequencies, float]:
    """YaRN (Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models",
    2023): a ramp over the pairs, from those that turn `beta_fast` times in the context to those
    that turn `beta_slow` times; with DeepSeek's `mscale` where both are given."""
    if theta == 1:
        raise InvalidInputError("`theta` is 1; 'yarn' needs another, such as 10000.0. Pass one.")
    factor, context = values["factor"], values["original_max_position_embeddings"]

    def pair_of(turns: float) -> float:
        return len(plain) * math.log(context / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(values["beta_fast"]), pair_of(values["beta_slow"])
    if values["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * len(plain) - 1)
    if low == high:
        high += SAME_ENDS
    made = []
    for i, f in enumerate(plain):
        ramp = min(1.0, max(0.0, (i - low) / (high - low)))
        made.append(f / factor * ramp + f * (1 - ramp))
    return made, _attention_factor(values)


def _attention_factor(values: Mapping[str, Any]) -> float:
    """What YaRN's tables are multiplied with, in place of a temperature of the attention."""
    if values["attention_factor"] is not None:
        return float(values["attention_factor"])

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(values["factor"]) + 1 if values["factor"] > 1 else 1.0

    if values["mscale"] and values["mscale_all_dim"]:
        return scale(values["mscale"]) / scale(values["mscale_all_dim"])
    return scale(1.0)


Scaling = Callable[[Frequencies, float, Mapping[str, Any]], tuple[Frequencies, float]]
# By name: the formula, the keys that it needs, and those that it may have with their defaults.
_SCALINGS: dict[str, tuple[Scaling, tuple[str, ...], dict[str, Any]]] = {
    "default": (_plain, (), {}),
    "linear": (_linear, ("factor",), {}),
    "llama3": (
        _llama3,
        (
            *("factor", "low_freq_factor", "high_freq_factor"),
            "original_max_position_embeddings",
        ),
        {},
    ),
    "yarn": (
        _yarn,
        ("factor", "original_max_position_embeddings"),
        {
            "attention_factor": None,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": None,
            "mscale_all_dim": None,
            "truncate": True,
        },
    ),
}
