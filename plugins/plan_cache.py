"""Launch plans of the GPU that is here, compiled once a user: the next process reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from plugins.compile import plan_bytes
from plugins.op import AttrValue, Op
from plugins.registry import OPS
from plugins.user_cache import cached, keep

_KIND = "plans"  # of the user's cache
_MAX_PLAN = 64 << 20  # bytes; kernels are of some hundred kilobytes each


def local_plan(op: Op, dims: Mapping[str, int], attributes: Mapping[str, AttrValue], sm: int) -> bytes:
    """``plugins.compile.plan_bytes``, from the user's cache where it was compiled before. In memory after that."""
    static = tuple(sorted((name, int(value)) for name, value in dims.items() if name not in op.dynamic))
    return _local(op.name, static, tuple(sorted(op.attribute_values(attributes).items())), sm)


@cache
def _local(name: str, static: tuple[tuple[str, int], ...], values: tuple[tuple[str, AttrValue], ...], sm: int) -> bytes:
    facts = json.dumps([name, static, values, sm, _compiler()])
    key = hashlib.sha256(facts.encode()).hexdigest()
    if (found := cached(_KIND, key, _MAX_PLAN)) is not None:
        return found
    made = plan_bytes(OPS[name], dict(static), dict(values), sm)
    keep(_KIND, key, made)
    return made


@cache
def _compiler() -> str:
    """All that decides a plan besides its op: our sources, the table of configs, and Triton."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted((*root.rglob("*.py"), *root.glob("*.json"))):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    try:
        return f"{version('triton')} {digest.hexdigest()}"
    except PackageNotFoundError:
        return f"none {digest.hexdigest()}"
