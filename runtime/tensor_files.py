"""Small safetensors files that callers give and get: embeddings, conditioning, latents."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.errors import UserError
from runtime.weights.file import WeightsFile


def read_tensor(path: Path, name: str) -> npt.NDArray[Any]:
    """The tensor of that name; bfloat16 as its bits in uint16. Raises UserError."""
    file = WeightsFile(path)
    try:
        return file.read(name)
    finally:
        file.close()


def write_tensors(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write fp32 arrays under a temporary name, then rename; equal input gives equal bytes, which the safetensors
    library's own writer does not promise for metadata. Raises UserError if the disk does not take them.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    data = b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array, dtype=np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"
    try:
        temporary.write_bytes(len(text).to_bytes(8, "little") + text + data)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written.", got=error.strerror or str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
