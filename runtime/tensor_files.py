"""Small safetensors files that callers give and get: embeddings, conditioning, latents."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from plugins.errors import UserError
from runtime.weights_file import WeightsFile


def read_tensor(path: Path, name: str) -> npt.NDArray[Any]:
    """The tensor of that name; bfloat16 as its bits in uint16. Raises UserError."""
    file = WeightsFile(path)
    try:
        return file.read(name)
    finally:
        file.close()


def write_tensors(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays under a temporary name, then rename. Raises UserError if the disk does not take them."""
    from safetensors.numpy import save

    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"
    try:
        temporary.write_bytes(save(dict(arrays), dict(metadata)))
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written.", got=error.strerror or str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
