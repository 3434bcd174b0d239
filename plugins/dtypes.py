"""The dtypes a tensor of plugins, engines and weights may have, and what each is called elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class DType:
    """Size in bytes; attribute names in torch, TensorRT's DataType and ONNX's TensorProto, a pointee in Triton.

    ``numpy`` has no bf16 and no fp8: there it is the dtype of their bits.
    """

    bytes: int
    torch: str
    triton: str
    tensorrt: str
    onnx: str
    safetensors: str
    numpy: str


DTYPES: Mapping[str, DType] = MappingProxyType(
    {
        "int8": DType(1, "int8", "i8", "INT8", "INT8", "I8", "int8"),
        "uint8": DType(1, "uint8", "u8", "UINT8", "UINT8", "U8", "uint8"),
        "fp8": DType(1, "float8_e4m3fn", "fp8e4nv", "FP8", "FLOAT8E4M3FN", "F8_E4M3", "uint8"),
        "bf16": DType(2, "bfloat16", "bf16", "BF16", "BFLOAT16", "BF16", "uint16"),
        "fp16": DType(2, "float16", "fp16", "HALF", "FLOAT16", "F16", "float16"),
        "fp32": DType(4, "float32", "fp32", "FLOAT", "FLOAT", "F32", "float32"),
        "int32": DType(4, "int32", "i32", "INT32", "INT32", "I32", "int32"),
    }
)
