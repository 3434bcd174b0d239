"""The least time a GPU needs for a cost: the slower of its memory and its tensor cores at the vendor's peaks."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.gpus import GpuSpec
from plugins.cost import Cost


@dataclass(frozen=True)
class Limit:
    """ms at the limit, and what sets it: "memory" or the dtype of the operations that take longest."""

    ms: float
    bound: str


def peak(gpu: GpuSpec, dtype: str) -> float:
    """Peak 10¹² operations a second. "fp8" is attention's P·V: a GPU without FP8 takes FP16, and GeForce parts add it
    in FP16 (plugins.sage_attention.kernel.CONFIGS).
    """
    if dtype == "fp8":
        return gpu.fp16_sum_rate * (gpu.fp8 if gpu.fp8 is not None else gpu.fp16)
    return {"int8": gpu.int8, "fp16": gpu.fp16}[dtype]


def limit(cost: Cost, gpu: GpuSpec) -> Limit:
    """The roofline; operations of different dtypes share the tensor cores, so their times add."""
    memory = cost.bytes / (gpu.bandwidth * 1e6)
    parts = {dtype: count / (peak(gpu, dtype) * 1e9) for dtype, count in cost.operations.items()}
    compute = sum(parts.values())
    return Limit(memory, "memory") if memory >= compute else Limit(compute, max(parts, key=lambda d: parts[d]))
