"""Small safetensors files that callers give and get: embeddings, conditioning, latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.errors import UserError
from runtime.atomic import told, write_atomic
from runtime.byte_sizes import gigabytes
from runtime.safetensors_header import encoded_header
from runtime.weights.file import WeightsFile

MAX_TENSOR_BYTES = 1 << 30  # the latents of the longest video take some hundred megabytes


def read_tensor(path: Path, name: str) -> npt.NDArray[Any]:
    """The tensor of that name; bfloat16 as its bits in uint16. Raises UserError."""
    file = WeightsFile(path)
    try:
        if name in file.tensors and (size := file.tensors[name].nbytes) > MAX_TENSOR_BYTES:
            raise UserError(
                f"{path} is too large.",
                expected=f"a tensor {name} of at most {gigabytes(MAX_TENSOR_BYTES)}",
                got=gigabytes(size),
                remedy="give a file of embeddings or latents, not of weights",
            )
        return file.read(name)
    finally:
        file.close()


def write_tensors(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write fp32 arrays. Raises UserError if the disk does not take them.

    Equal input gives equal bytes, which the safetensors library's own writer does not promise for metadata.
    """
    header = encoded_header(((name, "fp32", array.shape) for name, array in arrays.items()), metadata)
    data = [np.ascontiguousarray(array, dtype=np.float32).tobytes() for array in arrays.values()]
    with told(path):
        write_atomic(path, header + b"".join(data))
