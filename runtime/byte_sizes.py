"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import re

from plugins.errors import UserError

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(text: str | int) -> int:
    """Bytes of a size such as "12GB" (10⁹), "12GiB" (2³⁰) or a plain number. Raises UserError."""
    if isinstance(text, int):
        count = text
    else:
        match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-z]*)", text.strip().lower())
        known = match is not None and match[2] in _UNITS
        count = int(float(match[1]) * _UNITS[match[2]]) if match and known else 0
    if count <= 0:
        raise UserError(
            "This amount of memory cannot be read.",
            expected="a size such as 12GB, 11.5GiB or 12000000000",
            got=str(text),
        )
    if isinstance(text, str) and text.strip().isdigit() and count < 10**6:
        raise UserError(
            "This amount of memory is in bytes, and too few.",
            expected="a unit",
            got=text,
            remedy=f"write {text.strip()}GB",
        )
    return count


def gigabytes(count: int) -> str:
    """Bytes in GB of 10⁹, MB or B, as one reads them."""
    if count >= 10**9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 10**5 else f"{count:,} B"


def gigabytes_up(count: int) -> str:
    """Bytes as a budget that may be typed as it stands: rounded up, never down."""
    unit, name = (10**7, "GB") if count >= 10**9 else (10**5, "MB")
    whole = -(-count // unit)
    return f"{whole / 100:.2f}{name}" if name == "GB" else f"{whole / 10:.1f}{name}"
