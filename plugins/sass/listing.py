"""nvdisasm's listings of many cubins from one run: it takes one file, and a third of a second before it begins.

The file is an ELF image that holds the code and the symbols of all of them and nothing else (TIS, Executable and
Linking Format 1.2; its 64-bit form as in System V's ABI).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from plugins.cubin import inspected

_HEADER_BYTES = 64
_TABLE_AT, _COUNTS_AT = 0x28, 0x36  # e_shoff; e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
_SYMTAB, _STRTAB = 2, 3
_FUNCTION = 2
_NAMES = ("", ".shstrtab", ".strtab", ".symtab")  # of the sections before the code
_START = re.compile(r"^\t\.section\t\.text\.(\d+),.*\n", re.MULTILINE)


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


class _Symbol(NamedTuple):
    name: int
    info: int
    other: int
    section: int
    value: int
    size: int


_SECTION, _SYMBOL = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ")


class _Strings:
    """A string table while it grows."""

    def __init__(self) -> None:
        self.data = b"\0"

    def add(self, text: str) -> int:
        """The place of the text."""
        at = len(self.data)
        self.data += text.encode() + b"\0"
        return at


def _string(cubin: bytes, table: _Section, at: int) -> str:
    start = table.offset + at
    return cubin[start : cubin.index(b"\0", start)].decode()


def _code(cubin: bytes) -> Iterator[tuple[_Section, bytes, list[tuple[str, _Symbol]]]]:
    """The sections of a cubin that hold code, each with its bytes and the functions in it."""
    (table,) = struct.unpack_from("<Q", cubin, _TABLE_AT)
    *_, count, names = struct.unpack_from("<5H", cubin, _COUNTS_AT)
    sections = [_Section(*_SECTION.unpack_from(cubin, table + index * _SECTION.size)) for index in range(count)]
    (symtab,) = (section for section in sections if section.kind == _SYMTAB)
    places = range(symtab.offset, symtab.offset + symtab.size, _SYMBOL.size)
    symbols = [_Symbol(*_SYMBOL.unpack_from(cubin, at)) for at in places]
    for index, section in enumerate(sections):
        if _string(cubin, sections[names], section.name).startswith(".text."):
            inside = [s for s in symbols if s.section == index and s.info & 15 == _FUNCTION]
            named = [(_string(cubin, sections[symtab.link], symbol.name), symbol) for symbol in inside]
            yield section, cubin[section.offset : section.offset + section.size], named


def _joined(cubins: Sequence[bytes]) -> bytes:
    """An image with the code of cubins of one SM; the section of the first one's is called .text.0."""
    titles, strings, code = _Strings(), _Strings(), list[tuple[_Section, bytes]]()
    first = [titles.add(name) if name else 0 for name in _NAMES]
    symbols = [_SYMBOL.pack(*(0,) * 6)]
    for number, cubin in enumerate(cubins):
        for section, data, functions in _code(cubin):
            place = len(_NAMES) + len(code)
            code.append((section._replace(name=titles.add(f".text.{number}"), link=_NAMES.index(".symtab")), data))
            for name, symbol in functions:
                moved = symbol._replace(name=strings.add(f"{name}_{number}"), section=place)
                symbols.append(_SYMBOL.pack(*moved))
    listed = [
        (_Section(first[1], _STRTAB, 0, 0, 0, 0, 0, 0, 1, 0), titles.data),
        (_Section(first[2], _STRTAB, 0, 0, 0, 0, 0, 0, 1, 0), strings.data),
        (_Section(first[3], _SYMTAB, 0, 0, 0, 0, _NAMES.index(".strtab"), 1, 8, _SYMBOL.size), b"".join(symbols)),
        *code,
    ]
    image, table = bytearray(cubins[0][:_HEADER_BYTES]), bytearray(_SECTION.size)
    for section, data in listed:
        image += bytes(-len(image) % section.align)
        table += _SECTION.pack(*section._replace(offset=len(image), size=len(data)))
        image += data
    image += bytes(-len(image) % 8)
    struct.pack_into("<QQ", image, _TABLE_AT - 8, 0, len(image))  # no program headers
    struct.pack_into("<5H", image, _COUNTS_AT, 0, 0, _SECTION.size, 1 + len(listed), _NAMES.index(".shstrtab"))
    return bytes(image + table)


def listings(cubins: Sequence[bytes]) -> list[str]:
    """nvdisasm's listing of each cubin's code with its bytes; all are for one SM.

    Raises ValueError where one is missing.
    """
    if not cubins:
        return []
    _, *parts = _START.split(inspected(_joined(cubins), "nvdisasm", "-hex"))
    found = {int(number): text for number, text in zip(parts[::2], parts[1::2], strict=True)}
    if set(found) != set(range(len(cubins))):
        raise ValueError(f"nvdisasm printed {len(found)} listings of {len(cubins)} cubins")
    return [found[number] for number in range(len(cubins))]
