"""Element types of tensors and scalars, by Triton's names."""

from __future__ import annotations

from typing import Any

from gristmill.errors import InvalidInputError, did_you_mean

ELEMENT_BYTES = {
    "u1": 1,
    "i8": 1,
    "i16": 2,
    "i32": 4,
    "i64": 8,
    "u8": 1,
    "u16": 2,
    "u32": 4,
    "u64": 8,
    "fp8e4nv": 1,
    "fp8e5": 1,
    "fp8e4b8": 1,
    "fp8e5b16": 1,
    "fp8e4b15": 1,
    "fp16": 2,
    "bf16": 2,
    "fp32": 4,
    "fp64": 8,
}
FLOATS = ("fp16", "bf16", "fp32", "fp64")

# What torch and `triton.language` call them.
ALIASES = {
    "i1": "u1",
    "bool": "u1",
    "int1": "u1",
    "half": "fp16",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float": "fp32",
    "float32": "fp32",
    "double": "fp64",
    "float64": "fp64",
    "float8e4nv": "fp8e4nv",
    "float8e5": "fp8e5",
    "float8e4b8": "fp8e4b8",
    "float8e5b16": "fp8e5b16",
    "float8e4b15": "fp8e4b15",
    "float8_e4m3fn": "fp8e4nv",
    "float8_e5m2": "fp8e5",
    "float8_e4m3fnuz": "fp8e4b8",
    "float8_e5m2fnuz": "fp8e5b16",
    **{f"int{bits}": f"i{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"u{bits}" for bits in (8, 16, 32, 64)},
}


def is_dtype(value: Any) -> bool:
    """Whether a value is a dtype of torch or of `triton.language`."""
    # By name: neither is imported to read an artifact.
    return type(value).__name__ == "dtype" and type(value).__module__.partition(".")[0] in (
        "torch",
        "triton",
    )


def plain(value: Any) -> Any:
    """Triton's name of an element type, given by any of its names or as a dtype; anything else as
    it is."""
    text = str(value).rpartition(".")[2] if is_dtype(value) else value
    return ALIASES.get(text, text) if isinstance(text, str) else value


def element_type(value: Any, where: str, variables: Any = ()) -> str:
    """Triton's name of an element type.

    Raises:
        InvalidInputError: there is no such type; `where` names the argument.
    """
    name = plain(value)
    if isinstance(name, str) and name in ELEMENT_BYTES:
        return name
    known = [*variables, *ELEMENT_BYTES, *ALIASES]
    also = f", or a type variable ({', '.join(variables)})" if variables else ""
    raise InvalidInputError(
        f"{where} is {value!r}; it can be an element type ({', '.join(ELEMENT_BYTES)}){also}. "
        f"Variables are declared with `.types(T=[...])`.{did_you_mean(str(value), known)}"
    )


def bits_of(integer: str) -> int:
    """Bits of an integer type (`i32`)."""
    return int(integer[1:])


def limits(integer: str) -> tuple[int, int]:
    """The smallest and the largest value of an integer type (`u1` is a bool's)."""
    bits = bits_of(integer)
    if integer.startswith("u"):
        return 0, (1 << bits) - 1
    return -(1 << bits - 1), (1 << bits - 1) - 1
