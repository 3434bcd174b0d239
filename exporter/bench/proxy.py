"""RTX parts by proxy: a Hopper GPU runs the kernels of sm_80, 86, 89 and 120 from the PTX that Triton wrote for them.

It is the same program down to ptxas: the mma.sync instructions, their layouts and their FP16 sums. sm_120's configs are
compiled as sm_89's PTX, but for kernels that ask for bulk tensor copies themselves: those run as sm_90's, with theirs.
A kernel that shared memory limits on the part has no more programs an SM on the proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import msgspec

from exporter.bench.block_graph import OpCall
from exporter.bench.device import other_gpu, present_gpu
from exporter.gpus import GPUS, GpuSpec
from plugins.compile import build_plan, plan_bytes
from plugins.op import AttrValue, Op
from plugins.plan import KernelImage, Plan, decode, encode
from plugins.sass.report import blocks_by_shared, resident_blocks
from plugins.sms import RESERVED_SHARED, SMS, Rates

HOPPER = 90


#: What a Hopper SM does in a clock by mma.sync, which reaches two thirds of its peak, and what other instructions take
#: from it: microbenchmarks on one H100 80GB HBM3, 2026-11-25, of mma.sync m16n8k32 s8 (6.01 cycles a warp and quarter)
#: alone and with 1 to 4 others beside each.
HOPPER_RATES = Rates(
    5461,
    None,
    None,
    2730,
    2730,
    fp32=128,
    integer=64,
    beside=MappingProxyType(
        {
            **dict.fromkeys(("FFMA", "IMAD"), 1.0),
            **dict.fromkeys(("FADD", "FMUL", "HADD2", "HMUL2"), 0.55),
            **dict.fromkeys(("IADD3", "LOP3", "I2FP", "F2FP", "VIADD", "SEL", "FSEL", "FMNMX", "VIMNMX"), 0.45),
            "HFMA2": 0.9,
        }
    ),
)


@dataclass(frozen=True)
class ProxyLimits:
    """What mma.sync and memory give on a Hopper part: 10¹² INT8 and FP16 operations a second, GB/s of a copy."""

    part: str
    int8: float
    fp16: float
    bandwidth: float
    source: str

    @property
    def sm_clocks(self) -> float:
        """10⁹ clocks a second of all SMs together."""
        return self.int8 * 1e3 / HOPPER_RATES.int8

    @property
    def spec(self) -> GpuSpec:
        """As a GPU whose roofline is that of mma.sync. FP8 products are pairs of FP16 ones there."""
        made = replace(GPUS[self.part], int8=self.int8, fp8=self.fp16, fp16=self.fp16, bandwidth=self.bandwidth)
        return replace(made, name=f"{self.part}, mma.sync", product=f"{made.product} by mma.sync")


_H100 = ProxyLimits("h100", 1274.0, 640.0, 3000.0, "one H100 80GB HBM3 by a loop of mma.sync, and a copy; 2026-11-24")
#: By a word of the device's name; the tensor cores and clocks of H100 SXM and H200 are the same.
LIMITS: Mapping[str, ProxyLimits] = MappingProxyType(
    {
        "H100": _H100,
        "H200": replace(
            _H100, part="h200", bandwidth=4800.0, source="mma.sync as on one H100 80GB HBM3; memory: the vendor's peak"
        ),
    }
)


_FP16_SUMS = "FP16 sums at twice the rate of FP32 sums (GeForce)"
_FP8 = "FP8 mma.sync: for sm_90 ptxas makes conversions and two FP16 products of each"
_TENSOR_COPIES = "sm_120's bulk tensor copies and mbarriers in all kernels but the GEMM's: those run as sm_89's PTX"
_ALWAYS = (
    "clocks, power limit, caches and memory of the part: shares of a limit carry over, milliseconds do not",
    "the tensor cores' own speed: mma.sync reaches 64 % of Hopper's peak, and an FFMA beside it costs about a cycle",
)
#: What a proxy of an SM's parts does not show, one thing an entry.
LEAVES_OUT: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        80: _ALWAYS,
        86: (_FP16_SUMS, *_ALWAYS),
        89: (_FP16_SUMS, _FP8, *_ALWAYS),
        120: (_TENSOR_COPIES, _FP16_SUMS, _FP8, *_ALWAYS),
    }
)
#: mma.sync that sm_90 emulates, and one of as many registers that it has: for the time that the former would take.
FP8_AS_FP16: Mapping[str, str] = MappingProxyType(
    {"mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16": "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"}
)
#: Parts whose kernels a Hopper GPU runs from their PTX.
RTX = tuple(LEAVES_OUT)


@dataclass(frozen=True)
class Bench:
    """What benchmarks and tuning run on: the device's name, whose kernels, and the SM that stands in for it if any."""

    gpu: GpuSpec
    device: str
    host: int | None = None

    @property
    def sm(self) -> int:
        """The SM whose kernels these are."""
        return self.gpu.cubin_sm

    @property
    def limits(self) -> GpuSpec:
        """What the share of the limit is of: the GPU's peaks, or what mma.sync gives on the proxy."""
        return self.gpu if self.host is None else proxy_limits(self.device).spec

    def plan(self, call: OpCall) -> bytes:
        """The plan of a call that this device runs."""
        if self.host is None:
            return call.plan(self.sm)
        return proxy_plan_bytes(call.op, call.dims, dict(call.attributes), self.sm)

    def fresh_plan(self, call: OpCall) -> bytes:
        """The same built anew, as trials of configs need."""
        plan = build_plan(call.op, call.dims, dict(call.attributes), self.sm, self.host)
        return encode(plan if self.host is None else held(plan, self.host))

    def stand_in_plan(self, call: OpCall) -> bytes | None:
        """The plan with an FP16 product in each FP8 product's place, whose values are wrong; None if it has none."""
        if self.host is None or not SMS[self.sm].fp8 or dict(call.attributes).get("precision") != "int8":
            return None
        made = build_plan(call.op, call.dims, dict(call.attributes), self.sm, self.host, FP8_AS_FP16)
        plan = encode(held(made, self.host))
        return None if plan == self.plan(call) else plan

    @property
    def rates(self) -> Rates | None:
        """What an SM does in a clock, if it is known of these kernels."""
        return self.gpu.rates if self.host is None else HOPPER_RATES

    @property
    def sm_clocks(self) -> float:
        """10⁹ clocks a second of all SMs together, where ``rates`` are known."""
        return self.gpu.sm_clocks if self.host is None else proxy_limits(self.device).sm_clocks

    @property
    def facts(self) -> dict[str, object] | None:
        """What JSON says of a proxy; None where the GPU itself runs."""
        if self.host is None:
            return None
        limits = {name: value for name, value in asdict(proxy_limits(self.device)).items() if name != "part"}
        return {
            "device": self.device,
            "kernels_of_sm": self.sm,
            "leaves_out": list(LEAVES_OUT[self.sm]),
            "limits": limits,
        }


def bench_on(gpu: GpuSpec) -> Bench:
    """The present device for a GPU's kernels: that GPU, or a Hopper one for RTX parts. Raises UserError for others."""
    sm, name = present_gpu(gpu)
    if sm == gpu.sm:
        return Bench(gpu, name)
    if sm == HOPPER and gpu.cubin_sm in RTX:
        return Bench(gpu, name, HOPPER)
    raise other_gpu(gpu, sm, name, proxied=gpu.cubin_sm in RTX)


def proxy_limits(device: str) -> ProxyLimits:
    """The limits of a Hopper device by its name; the H100's where no entry fits."""
    return next((limits for word, limits in LIMITS.items() if word in device), _H100)


def held(plan: Plan, host: int) -> Plan:
    """The plan with no more programs an SM than shared memory leaves on the part: the rest is taken as padding."""
    kernels = [_held_kernel(kernel, plan.sm, host) for kernel in plan.kernels]
    return msgspec.structs.replace(plan, kernels=kernels)


def _held_kernel(kernel: KernelImage, sm: int, host: int) -> KernelImage:
    allowed = blocks_by_shared(kernel, sm)
    if resident_blocks(kernel, host) <= allowed:
        return kernel
    # One more program would need more than there is.
    padded = SMS[host].shared * 1024 // (allowed + 1) - RESERVED_SHARED * 1024 + 16
    return msgspec.structs.replace(kernel, shared=padded - padded % 16)


def proxy_plan_bytes(op: Op, dims: Mapping[str, int], attributes: Mapping[str, AttrValue], sm: int) -> bytes:
    """The plan of an RTX part's kernels that a Hopper GPU runs; compiled once a process."""
    return _held_bytes(plan_bytes(op, dims, attributes, sm, HOPPER))


@lru_cache(maxsize=256)
def _held_bytes(plan: bytes) -> bytes:
    return encode(held(decode(plan), HOPPER))
