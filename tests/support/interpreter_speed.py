"""Takes two searches out of every step of Triton's interpreter: what it patches in a module, and numpy's dtypes.

Triton 3.6 and 3.7 keep these functions under private names, so a release that moves them stops here with an
AttributeError. Import only where TRITON_INTERPRET=1 was set before triton's import.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


@cache
def _builtins(owner: Any) -> tuple[str, ...]:
    return tuple(name for name, member in inspect.getmembers(owner) if tl.core.is_builtin(member))


def patch_builtins(owner: Any, builder: Any, scope: Any) -> None:
    """As the interpreter's own, but for members found once; what is patched already is no builtin."""
    for name in _builtins(owner):
        if tl.core.is_builtin(member := getattr(owner, name)):
            interpreter._patch_attr(owner, name, member, builder, scope)


_np_dtype: Any = interpreter._get_np_dtype
_np_scalar = cache(_np_dtype)


def np_dtype(dtype: Any) -> Any:
    """As the interpreter's own, remembered for scalars: pointers have no hash."""
    return (_np_dtype if isinstance(dtype, (tl.pointer_type, tl.block_type)) else _np_scalar)(dtype)


for _name in ("_patch_builtin", "_patch_attr"):
    getattr(interpreter, _name)  # AttributeError: see above
interpreter._patch_builtin = patch_builtins
interpreter._get_np_dtype = np_dtype
