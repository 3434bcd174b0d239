"""The header facts.h: what the library must know of a plan's form, from the tables that Python reads.

CMake runs it: ``python -m plugins.native.facts VERSION OUT``, in the folder that holds ``plugins/``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from plugins import plan
from plugins.dtypes import DTYPES
from plugins.executor import STATIC_SHARED_LIMIT
from plugins.expr import MAX_DEPTH, MAX_NUMBER, OPERATORS
from plugins.library import MARKER
from plugins.registry import OPS
from plugins.tensorrt_plugin import PLAN_FIELD, PLUGIN_VERSION

#: An operator's name here and in TensorRT's DimensionOperation.
_OPERATIONS = {
    "+": ("Sum", "kSUM"),
    "-": ("Difference", "kSUB"),
    "*": ("Product", "kPROD"),
    "//": ("FloorDivision", "kFLOOR_DIV"),
    "ceil_div": ("CeilDivision", "kCEIL_DIV"),
    "max": ("Maximum", "kMAX"),
    "min": ("Minimum", "kMIN"),
}


def header(version: str) -> str:
    """The text of facts.h for this version of turbotrt."""
    numbers = {
        "kFormatVersion": plan.FORMAT_VERSION,
        "kAlignment": plan.ALIGNMENT,
        "kMaxName": plan.MAX_NAME,
        "kMaxDims": plan.MAX_DIMS,
        "kMaxCount": plan.MAX_COUNT,
        "kMaxList": plan.MAX_LIST,
        "kMaxSymbols": plan.MAX_SYMBOLS,
        "kMaxWarps": plan.MAX_WARPS,
        "kMaxShared": plan.MAX_SHARED,
        "kMaxDepth": MAX_DEPTH,
        "kMaxNumber": MAX_NUMBER,
        "kStaticSharedLimit": STATIC_SHARED_LIMIT,
    }
    facts = [
        f"version {version}",
        f"plan-format {plan.FORMAT_VERSION}",
        f"plugin-version {PLUGIN_VERSION}",
        f"ops {' '.join(OPS)}",
    ]
    said = [_quoted(line + "\\n") for line in (MARKER.decode().strip(), *facts)]
    lines = [
        "// Made by plugins/native/facts.py from the tables that Python reads.",
        "#pragma once",
        *(f'#define TURBOTRT_{name} "{text}"' for name, text in _texts(version).items()),
        f"#define TURBOTRT_SAID {' '.join(said)}",
        _table("OPS", [(_quoted(op),) for op in OPS]),
        _table("DTYPES", [(_quoted(name), str(d.bytes), f"k{d.tensorrt}") for name, d in DTYPES.items()]),
        _table("OPERATORS", [(_quoted(operator), *_OPERATIONS[operator]) for operator in OPERATORS]),
        "namespace turbotrt {",
        *(f"constexpr long long {name} = {number}LL;" for name, number in numbers.items()),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _texts(version: str) -> dict[str, str]:
    return {
        "VERSION": version,
        "PLUGIN_VERSION": PLUGIN_VERSION,
        "PLAN_FIELD": PLAN_FIELD,
        "MAGIC": plan.MAGIC.decode(),
    }


def _quoted(text: str) -> str:
    return f'"{text}"'


def _table(name: str, rows: list[tuple[str, ...]]) -> str:
    """A macro that gives each row to another macro."""
    return f"#define TURBOTRT_{name}(X) " + " ".join(f"X({', '.join(row)})" for row in rows)


def main() -> None:
    """Write the header, unless it is the same already."""
    version, out = sys.argv[1], Path(sys.argv[2])
    text = header(version)
    if not out.is_file() or out.read_text() != text:
        out.write_text(text)


if __name__ == "__main__":
    main()
