"""Names and literals of C: any name of Python becomes an identifier that C and C++ both take."""

from __future__ import annotations

import re

from gristmill.errors import ArtifactError

# Keywords of C11 and C++17 that Python does not have, macros of the headers that are included, and
# what a generated function calls its own parameters.
RESERVED = frozenset(
    """
    alignas alignof and_eq asm auto bitand bitor bool case catch char char16_t char32_t compl const
    const_cast constexpr decltype default delete do double dynamic_cast enum explicit export extern
    false float friend goto inline int long mutable namespace new noexcept not_eq nullptr operator
    or_eq private protected public register reinterpret_cast restrict short signed sizeof static
    static_assert static_cast struct switch template this thread_local throw true typedef typeid
    typename typeof union unsigned using virtual void volatile wchar_t xor xor_eq
    int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t uintptr_t size_t
    NULL EOF BUFSIZ errno stdin stdout stderr linux unix major minor
    num_warps num_stages grid grid_x grid_y grid_z stream
    """.split()  # noqa: SIM905 - seventy words read better so
)
MARK = re.compile(r"[^A-Za-z0-9_]")


def identifier(name: str) -> str:
    """A name as an identifier: letters outside ASCII by their number, reserved names with `_`."""
    plain = MARK.sub(lambda m: f"u{ord(m[0]):x}", name)
    taken = plain in RESERVED or plain.lower().startswith(("gm_", "gristmill_"))
    return f"{plain}_" if taken else plain


def identifiers(names: list[str], where: str) -> list[str]:
    """Names as identifiers, which must differ.

    Raises:
        ArtifactError: two names become one.
    """
    made = [identifier(name) for name in names]
    for i, name in enumerate(made):
        if name in made[:i]:
            raise ArtifactError(
                f"{where}: {names[made.index(name)]!r} and {names[i]!r} are both {name!r} in C. "
                "Rename one."
            )
    return made


def text(value: str) -> str:
    """A string literal. Octal escapes end after three digits, and `?` starts C11's trigraphs."""
    return '"' + "".join(_character(byte) for byte in value.encode()) + '"'


def _character(byte: int) -> str:
    plain = 32 <= byte < 127 and chr(byte) not in '"\\?'
    return chr(byte) if plain else f"\\{byte:03o}"


def comment(value: str) -> str:
    """Text that does not end the comment that it stands in."""
    return MARK_OF_COMMENT.sub("* /", value).replace("\n", " ").replace("\\", "/")


MARK_OF_COMMENT = re.compile(r"\*/")


def integer(value: int, where: str) -> str:
    """A 64-bit integer literal.

    Raises:
        ArtifactError: it does not fit.
    """
    if not -(1 << 63) < value < 1 << 63:
        raise ArtifactError(
            f"{where} has the value {value}; C's interface takes integers of 64 bits, and the "
            "smallest of them stands for None. Leave it out."
        )
    return f"INT64_C({value})"
