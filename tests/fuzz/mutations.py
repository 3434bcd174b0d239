"""Changes that hurt: of bytes, of JSON's and msgpack's structures, and of names."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

Place = tuple[Any, Any]  # a container and a key of it

HALF = "\ud800"  # of a surrogate pair: text that no file can hold
PIECES = (
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"\\",
    b"-",
    b"1e999",
    b"9" * 25,
    b",",
    b"\0",
    b"0",
    b".",
    b"e",
    b"null",
    b"true",
    b"F32",
    b"\xff",
)
NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 2**15, 10**6, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, -(2**63))
TEXTS = (
    "",
    "x",
    "L",
    "8*H",
    "0*L",
    "L*L",
    "-1*L",
    "\x1b[31m",
    "\ud800",
    "a\0b",
    "../x",
    "x" * 5000,
    "fp32",
    "int8",
    "Ω",
)


def bytes_of(data: bytes, dice: random.Random, most: int = 4) -> bytes:
    """Some bytes changed, dropped, doubled, cut off, or swapped for what hurts."""
    out = bytearray(data)
    for _ in range(dice.randint(0, most)):
        if not out:
            break
        at, kind = dice.randrange(len(out)), dice.randrange(6)
        if kind == 0:
            out[at] = dice.randrange(256)
        elif kind == 1:
            del out[at : at + dice.randint(1, 20)]
        elif kind == 2:
            out[at:at] = out[at : at + dice.randint(1, 60)]
        elif kind == 3:
            out[at:at] = dice.choice(PIECES)
        elif kind == 4:
            out[at : at + 1] = dice.choice(PIECES)
        else:
            number = dice.choice(NUMBERS) % 2**64
            out[at : at + 8] = number.to_bytes(8, dice.choice(("little", "big")))
    return bytes(out[: dice.randrange(len(out) + 1)]) if out and dice.random() < 0.05 else bytes(out)


def structure(value: Any, dice: random.Random, most: int = 3, texts: bool = True) -> Any:
    """A copy of lists, dicts and scalars with some places changed. ``texts``: whether single surrogates may appear."""
    out = copy.deepcopy(value)
    for _ in range(dice.randint(1, most)):
        places = list(_places(out))
        if not places:
            return hostile(dice, texts)
        holder, key = dice.choice(places)
        _change(holder, key, dice, texts)
    return out


def hostile(dice: random.Random, texts: bool = True) -> Any:
    """A value that nobody expects."""
    kind = dice.randrange(9)
    if kind == 0:
        return dice.choice(NUMBERS)
    if kind == 1:
        return dice.choice([text for text in TEXTS if texts or text != HALF])
    if kind == 2:
        return dice.choice((0.5, -1.0, 1e300, 2.0))
    if kind == 3:
        return dice.choice((None, True, False))
    if kind == 4:
        return [hostile(dice, texts) for _ in range(dice.randrange(4))]
    if kind == 5:
        return {"x": hostile(dice, texts)}
    if kind == 6:
        return nested(dice.choice((3, 30, 300)), dice.choice("[{"))
    if kind == 7:
        return [1] * dice.choice((8, 9, 100, 5000))
    return dice.choice(([], {}, [[]], "dit", "L"))


def nested(depth: int, kind: str) -> Any:
    """Lists in lists, or objects in objects."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "[" else {"a": value}
    return value


def _change(holder: Any, key: Any, dice: random.Random, texts: bool) -> None:
    kind = dice.randrange(6)
    old = holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(old, int) and not isinstance(old, bool):
        holder[key] = old + dice.choice((-1, 1, old, 10**6))
    elif kind == 2 and isinstance(holder, list):
        holder[key:key] = copy.deepcopy(holder[key : key + 1]) * dice.choice((1, 2, 70))
    elif kind == 3 and isinstance(holder, dict):
        holder[dice.choice(("x", *holder))] = old
    elif kind == 4 and isinstance(old, str) and old:
        holder[key] = dice.choice((old + dice.choice(TEXTS[:-1]) if texts else old + "x", old[:-1], old.upper(), ""))
    else:
        holder[key] = hostile(dice, texts)


def _places(value: Any) -> Iterator[Place]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)
