"""The table of GPUs: what the exporter and the cost models need to know about each part, by the name given to --gpu."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from plugins.errors import UserError
from plugins.sms import SMS, Rates, capability, cubin_sm

Flavour = Literal["tensorrt_rtx", "tensorrt"]


@dataclass(frozen=True)
class GpuSpec:
    """One part. Peaks are the vendor's dense figures: INT8 in TOPS, FP8 and FP16 in TFLOPS with FP32 accumulation.

    ``fp8`` is None where the tensor cores have no FP8. ``bandwidth`` is GB/s of device memory, ``vram_gib`` its size.
    """

    name: str
    product: str
    sm: int
    flavour: Flavour
    vram_gib: int
    int8: float
    fp8: float | None
    fp16: float
    bandwidth: float

    @property
    def cubin_sm(self) -> int:
        """The SM our kernels are compiled for."""
        return cubin_sm(self.sm)

    @property
    def fp16_sum_rate(self) -> float:
        """How much faster the tensor cores add products in FP16 than in FP32: GeForce parts halve the latter."""
        return 2.0 if self.product.startswith("GeForce") else 1.0

    @property
    def rates(self) -> Rates | None:
        """What one of its SMs does in a clock, if kernels for it multiply by mma.sync."""
        rates = SMS[self.cubin_sm].rates
        return rates if rates is None or self.fp16_sum_rate > 1 else rates.professional

    @property
    def sm_clocks(self) -> float:
        """10⁹ clocks a second of all its SMs together. Raises ValueError where ``rates`` are not known."""
        if (rates := self.rates) is None:
            raise ValueError(f"{self.name}: what an SM does in a clock is not in the table")
        return self.int8 * 1e3 / rates.int8

    @property
    def compute_capability(self) -> str:
        return capability(self.sm)


# GeForce parts do FP8 and FP16 with FP32 accumulation at half the rate of the professional parts; INT8 is full rate.
# Sources, by NVIDIA: the appendices of the RTX Blackwell, Ada and Ampere GA102 (v2.0, with RTX A6000) architecture
# whitepapers; data sheets of L40S, RTX 6000 Ada, RTX PRO 6000, A100, H100, H200 and HGX B200, SXM boards.
# The documents themselves could not be reached in 2026-11. Checked then: INT8 of every part but GB10 as (SMs) x
# (operations a clock of an SM) x (boost clock), and published quotations for RTX 5090, RTX PRO 6000, 4090, 4080, L40S,
# H100, H200 and HGX B200. L40S is quoted with FP16 "362.05 | 733", the L40's figure; half of 733 is taken.
# DGX Spark publishes FP4 with sparsity only (1,000): its other figures are derived from that. Memory is what the driver
# reports where that is less than the name's gigabytes (H200 141 GB, HGX B200 180 GB).
#
# The flavour: tensorrt_rtx cross-builds without a GPU. Its list of targets has SM80 but neither SM90 nor SM100, and its
# engines refuse Hopper; data-center parts that do no graphics all get tensorrt, A100 too, so that one rule holds for
# the class and no engine is offered for a part on which TensorRT for RTX is not supported. L40S is an RTX-class part.
_TABLE = (
    GpuSpec("rtx5090", "GeForce RTX 5090", 120, "tensorrt_rtx", 32, 838.0, 419.0, 209.5, 1792.0),
    GpuSpec("rtx5080", "GeForce RTX 5080", 120, "tensorrt_rtx", 16, 450.2, 225.1, 112.6, 960.0),
    GpuSpec("rtx5070ti", "GeForce RTX 5070 Ti", 120, "tensorrt_rtx", 16, 351.5, 175.8, 87.9, 896.0),
    GpuSpec("rtx-pro-6000", "RTX PRO 6000 Blackwell", 120, "tensorrt_rtx", 96, 1007.6, 1007.6, 503.8, 1792.0),
    GpuSpec("rtx4090", "GeForce RTX 4090", 89, "tensorrt_rtx", 24, 660.6, 330.3, 165.2, 1008.0),
    GpuSpec("rtx4080", "GeForce RTX 4080", 89, "tensorrt_rtx", 16, 389.9, 194.9, 97.5, 716.8),
    GpuSpec("l40s", "L40S", 89, "tensorrt_rtx", 48, 733.0, 733.0, 366.5, 864.0),
    GpuSpec("rtx6000-ada", "RTX 6000 Ada Generation", 89, "tensorrt_rtx", 48, 728.5, 728.5, 364.2, 960.0),
    GpuSpec("rtx3090", "GeForce RTX 3090", 86, "tensorrt_rtx", 24, 284.0, None, 71.0, 936.2),
    GpuSpec("a6000", "RTX A6000", 86, "tensorrt_rtx", 48, 309.7, None, 154.8, 768.0),
    GpuSpec("dgx-spark", "DGX Spark (GB10)", 121, "tensorrt_rtx", 128, 250.0, 250.0, 125.0, 273.0),
    GpuSpec("a100", "A100 SXM 80 GB", 80, "tensorrt", 80, 624.0, None, 312.0, 2039.0),
    GpuSpec("h100", "H100 SXM", 90, "tensorrt", 80, 1979.0, 1979.0, 989.0, 3350.0),
    GpuSpec("h200", "H200 SXM", 90, "tensorrt", 140, 1979.0, 1979.0, 989.0, 4800.0),
    GpuSpec("b200", "B200 (HGX)", 100, "tensorrt", 179, 4500.0, 4500.0, 2250.0, 8000.0),
)

GPUS: Mapping[str, GpuSpec] = MappingProxyType({gpu.name: gpu for gpu in _TABLE})


def gpu_named(name: str) -> GpuSpec:
    """The GPU of that name. Raises UserError listing the known names."""
    if name not in GPUS:
        raise UserError(f"There is no GPU named {name!r}.", expected=", ".join(GPUS), got=name)
    return GPUS[name]
