"""What a binary itself says: the kernels in it, and the sizes of their parameters.

A cubin and a code object for AMD are both 64-bit ELF. A cubin lists a kernel's parameters in its
section `.nv.info.<kernel>`, a code object in a note, in MessagePack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gristmill.errors import ArtifactError

ELF64 = b"\x7fELF\x02\x01"
SYMBOLS, NOTES = 2, 7  # types of sections
FUNCTION = 2  # type of a symbol
SIZED, PARAMETER = 0x04, 0x17  # of nv.info: a record with a size; a kernel's parameter
AMD_METADATA = 32


@dataclass(frozen=True)
class _Section:
    name: str
    type: int
    link: int
    data: bytes


def parameter_sizes(binary: bytes) -> dict[str, list[int]]:
    """The kernels of a binary, with the bytes of each of their parameters, in order.

    Raises:
        ArtifactError: it is no cubin and no code object, or is cut off.
    """
    if not binary.startswith(ELF64):
        raise ArtifactError("it is no 64-bit ELF file")
    try:
        sections = _sections(binary)
        notes = [s for s in sections if s.type == NOTES and b"AMDGPU" in s.data[:32]]
        if notes:
            return _of_code_object(notes[0].data)
        infos = {s.name.removeprefix(".nv.info."): s.data for s in sections}
        return {n: _of_cubin(infos.get(n, b"")) for n in _functions(sections)}
    except (struct.error, LookupError, ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"it is damaged ({type(error).__name__}: {error})") from None


def _sections(binary: bytes) -> list[_Section]:
    (start,) = struct.unpack_from("<Q", binary, 0x28)
    size, count, names = struct.unpack_from("<HHH", binary, 0x3A)
    heads = [struct.unpack_from("<IIQQQQII", binary, start + i * size) for i in range(count)]

    def data(head: tuple[int, ...]) -> bytes:
        found = binary[head[4] : head[4] + head[5]]
        if head[1] in (SYMBOLS, NOTES) and len(found) != head[5]:
            raise IndexError("a section ends after the file")
        return found

    table = data(heads[names])
    return [_Section(_text(table, head[0]), head[1], head[6], data(head)) for head in heads]


def _text(table: bytes, start: int) -> str:
    return table[start : table.index(b"\0", start)].decode()


def _functions(sections: list[_Section]) -> Iterator[str]:
    for section in sections:
        if section.type != SYMBOLS:
            continue
        names = sections[section.link].data
        for name, info in struct.iter_unpack("<IB19x", section.data):
            if info & 15 == FUNCTION:
                yield _text(names, name)


def _of_cubin(info: bytes) -> list[int]:
    """Sizes from a kernel's nv.info: records of a format, an attribute and a payload."""
    found, at = {}, 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form != SIZED:
            continue
        if attribute == PARAMETER:
            _, ordinal, _, packed = struct.unpack_from("<IHHI", info, at)
            found[ordinal] = packed >> 18
        at += size
    return [found[i] for i in sorted(found)]


def _of_code_object(note: bytes) -> dict[str, list[int]]:
    at = 0
    while at < len(note):
        name_size, size, type_ = struct.unpack_from("<III", note, at)
        start = at + 12 + (name_size + 3) // 4 * 4
        if type_ == AMD_METADATA:
            data = _MessagePack(note[start : start + size]).value()
            return {k[".name"]: list(_explicit(k[".args"])) for k in data["amdhsa.kernels"]}
        at = start + (size + 3) // 4 * 4
    raise KeyError("metadata")


def _explicit(arguments: list[dict[str, Any]]) -> Iterator[int]:
    for argument in arguments:
        if not argument[".value_kind"].startswith("hidden"):
            yield argument[".size"]


NUMBERS = dict(zip(range(0xCC, 0xD4), "BHIQbhiq", strict=True))
LENGTHS = dict(zip(range(0xD9, 0xE0), "BHIHIHI", strict=True))  # of texts, lists, maps
PLAIN = {0xC0: None, 0xC2: False, 0xC3: True}


class _MessagePack:
    """A reader of what LLVM writes: maps, lists, texts, whole numbers and bools."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def value(self) -> Any:
        (tag,) = self._taken("B")
        if tag in PLAIN:
            return PLAIN[tag]
        if tag < 0x80 or tag >= 0xE0:
            return tag if tag < 0x80 else tag - 0x100
        if tag in NUMBERS:
            return self._taken(NUMBERS[tag])[0]
        if tag in LENGTHS:
            (length,) = self._taken(LENGTHS[tag])
        else:
            length = tag & (0x1F if 0xA0 <= tag < 0xC0 else 0x0F)
        if 0xA0 <= tag < 0xC0 or 0xD9 <= tag <= 0xDB:
            return bytes(self._taken(f"{length}s")[0]).decode()
        if 0x90 <= tag < 0xA0 or tag in (0xDC, 0xDD):
            return [self.value() for _ in range(length)]
        if tag < 0x90 or tag in (0xDE, 0xDF):
            return {self.value(): self.value() for _ in range(length)}
        raise TypeError(f"the tag {tag:#x} is unknown")

    def _taken(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f">{form}", self._data, self._at)
        self._at += struct.calcsize(f">{form}")
        return found
