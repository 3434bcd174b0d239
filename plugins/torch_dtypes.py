"""The dtypes' names and torch's own, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from plugins.dtypes import DTYPES

_OURS: Mapping[str, str] = MappingProxyType({dtype.torch: name for name, dtype in DTYPES.items()})


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of one of DTYPES' names; any other name is torch's own."""
    return getattr(torch, DTYPES[name].torch if name in DTYPES else name)


def dtype_name(dtype: torch.dtype) -> str:
    """The inverse of ``torch_dtype``."""
    name = str(dtype).removeprefix("torch.")
    return _OURS.get(name, name)
