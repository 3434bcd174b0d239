"""SageAttention's configs and launch plans; the kernels are in keys_kernel, flash_kernel and, for sm_90, sage_sla."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from plugins.errors import UserError
from plugins.expr import Dim, ceil_div
from plugins.plan_builder import Buffer, Launch, LaunchPlan
from plugins.sage_attention.flash_kernel import flash_attention
from plugins.sage_attention.keys_kernel import quantize_launches, statistics_launches
from plugins.sage_attention.mma_bf16_kernel import flash_attention_mma_bf16
from plugins.sage_attention.mma_kernel import flash_attention_mma
from plugins.sage_attention.primitives_kernel import FP8_MAX
from plugins.sms import SHARED_LIMIT, SMS


@dataclass(frozen=True)
class AttentionConfig:
    """How flash_attention is compiled. ``pv`` is the dtype of P·V: "bf16" (and bf16 q·kᵀ) or "fp8".

    ``blocks`` is the number of key blocks a step takes, 1 or 2.
    ``bf16_stages``, where given, replaces num_stages for a bf16 output, whose epilogue costs the loop registers.
    """

    pv: str
    num_warps: int
    num_stages: int
    blocks: int = 1
    bf16_stages: int | None = None

    v_max: ClassVar[float] = FP8_MAX.value
    fragments: ClassVar[bool] = False

    def reason(self, sm: int) -> str | None:
        """Why it cannot run on an SM, or None."""
        if self.pv not in ("bf16", "fp8"):
            return f"pv is bf16 or fp8, not {self.pv}"
        if self.num_warps not in (4, 8):
            return f"num_warps is 4 or 8, not {self.num_warps}"
        if self.blocks not in (1, 2):
            return f"a step takes 1 or 2 key blocks, not {self.blocks}"
        return None

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        tile, queries = (4, 2) if self.pv == "bf16" else (2, 1)
        return 64 * 128 * tile * self.blocks * self.num_stages + 128 * 128 * queries


@dataclass(frozen=True)
class MmaConfig:
    """How flash_attention_mma is compiled. ``pv`` is the dtype of P·V, "fp16" or "fp8", which tensor cores add in FP16
    within a block of keys: GeForce parts do that at twice the rate. ``v_slots``: tiles of v in shared memory, 1 or 2.
    """

    pv: str
    v_slots: int

    fragments: ClassVar[bool] = True

    @property
    def v_max(self) -> float:
        """The largest quantized v. e4m3 is precise down to 2^-6: smaller v are off by 2^-12 of their channel's maximum
        (SageAttention2++'s way)."""
        return 3.75 if self.pv == "fp8" else 32.0

    @property
    def floor(self) -> float:
        """log2 of a probability at its reference."""
        return 6.0 if self.pv == "fp8" else 0.0

    @property
    def slack(self) -> float:
        """log2 of how much larger than that a probability may be: 64 · v_max · 2^(floor + slack) is below 65,504."""
        return 2.0 if self.pv == "fp8" else 4.0

    def reason(self, sm: int) -> str | None:
        """Why it cannot run on an SM, or None."""
        if self.pv not in ("fp8", "fp16"):
            return f"pv is fp8 or fp16, not {self.pv}"
        if self.v_slots not in (1, 2):
            return f"v has 1 or 2 slots, not {self.v_slots}"
        return None

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        return 128 * 128 + 64 * 128 * (2 + self.v_slots * (1 if self.pv == "fp8" else 2))


@dataclass(frozen=True)
class DenseConfig:
    """flash_attention_mma_bf16, dense attention in bf16 by mma.sync: it leaves nothing to choose."""

    pv: ClassVar[str] = "bf16"
    shared: ClassVar[int] = 3 * 32 * 2 * 256  # bytes: three steps of 32 rows of k and v

    def reason(self, _sm: int) -> str | None:
        """Why it cannot run on an SM, or None."""
        return None


Config = AttentionConfig | MmaConfig | DenseConfig

#: (precision, SM) → config, and ("dense bf16", SM) for what SageAttention takes instead where there is one.
#: Two blocks a step where 255 registers hold them; two programs an SM where 99 KiB do.
CONFIGS: Mapping[tuple[str, int], Config] = {
    **{("dense bf16", sm): DenseConfig() for sm in (80, 86, 89, 120)},
    **{("bf16", sm): AttentionConfig("bf16", 8, 2) for sm in (80, 86, 89, 90, 100)},
    ("bf16", 120): AttentionConfig("bf16", 8, 2, bf16_stages=1),
    **{("int8", sm): MmaConfig("fp16", 1) for sm in (80, 86)},
    ("int8", 89): MmaConfig("fp8", 2),
    ("int8", 120): MmaConfig("fp8", 2),
    ("int8", 90): AttentionConfig("fp8", 8, 3, blocks=2),
    ("int8", 100): AttentionConfig("fp8", 8, 3, blocks=2),
}


def legal(config: Config, sm: int) -> str | None:
    """Why a config cannot run on an SM, or None."""
    if config.pv == "fp8" and not SMS[sm].fp8:
        return f"sm_{sm} has no FP8 tensor cores"
    if (reason := config.reason(sm)) is not None:
        return reason
    need = config.shared // 1024
    return f"needs {need} KiB of shared memory, sm_{sm} has {SHARED_LIMIT[sm]}" if need > SHARED_LIMIT[sm] else None


def attention_config(precision: str, sm: int, dense: bool) -> Config:
    """The config for an attribute value and SM. Raises UserError on an unknown precision."""
    if precision not in ("int8", "bf16"):
        raise UserError("unknown attention precision", expected="int8 or bf16", got=precision)
    config = CONFIGS[precision, sm]
    if dense:
        config = CONFIGS.get((f"dense {precision}", sm), config)
    if (reason := legal(config, sm)) is not None:
        raise ValueError(f"attention on sm_{sm}: {reason}")
    return config


def check_widths(d: Dim, e: Dim) -> int:
    """The number of heads. Raises UserError where D or E is not static or not a fitting multiple of 128."""
    if not isinstance(d, int) or not isinstance(e, int) or d % 128 or e % 8 or not 0 < d <= e:
        raise UserError("attention needs static widths", expected="D a multiple of 128, E ≥ D", got=f"D={d}, E={e}")
    return d // 128


def _dense_launch(length: Dim, s: Dim, d: int, e: int, quantize: bool) -> Launch:
    """flash_attention_mma_bf16."""
    args: dict[str, str | Dim] = {name: name for name in ("q", "k", "v", "o")} | {"L": length, "S": s}
    args |= {"o_scale": "o_scale"} if quantize else {}
    constants = {"D": d, "E": e, "QUANTIZE": quantize} | ({} if quantize else {"o_scale": None})
    return Launch(flash_attention_mma_bf16, (ceil_div(length, 128), d // 128, 1), args, constants, num_warps=4)


def attention_launch(length: Dim, s: Dim, d: int, e: int, config: Config, kept: Dim | None, quantize: bool) -> Launch:
    """The attention itself; ``kept`` is the number of kept key blocks, or None for dense attention."""
    if isinstance(config, DenseConfig):
        return _dense_launch(length, s, d, e, quantize)
    quantized = config.pv != "bf16"
    args = {"q": "q", "o": "o", "k": "kq" if quantized else "k", "v": "vq" if quantized else "v", "L": length, "S": s}
    optional = {"k_scale": "kscale", "v_scale": "vscale"} if quantized else {}
    if kept is not None:
        optional |= {"lut": "lut", "kv_proj": "kv_proj", "z": "z_total", "bias": "proj_bias", "kept": kept}
    elif isinstance(config, MmaConfig):
        optional["kept"] = ceil_div(s, 64)
    if quantize:
        optional["o_scale"] = "o_scale"
    names = ("k_scale", "v_scale", "lut", "kv_proj", "z", "bias", "kept", "o_scale")
    constants: dict[str, object] = {name: None for name in names if name not in optional}
    constants |= {"D": d, "PV": config.pv, "SPARSE": kept is not None, "QUANTIZE": quantize}
    grid = (ceil_div(length, 128), d // 128, 1)
    if isinstance(config, MmaConfig):
        constants |= {"FLOOR": config.floor, "SLACK": config.slack, "V_SLOTS": config.v_slots}
        return Launch(flash_attention_mma, grid, args | optional, constants, num_warps=4, num_stages=1)
    constants |= {"E": e, "BLOCKS": config.blocks}
    # Loads through lut take two loads in a row: Triton then needs two more stages to hold as many blocks in flight.
    stages = config.num_stages if quantize or config.bf16_stages is None else config.bf16_stages
    stages += 2 if kept is not None and quantized and config.blocks == 1 else 0
    return Launch(flash_attention, grid, args | optional, constants, config.num_warps, stages)


def _plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int, quantize: bool) -> LaunchPlan:
    length, s, d, e = (dims[name] for name in ("L", "S", "D", "E"))
    check_widths(d, e)
    config = attention_config(str(attributes["precision"]), sm, dense=True)
    buffers: list[Buffer] = []
    launches: list[Launch] = []
    if config.pv != "bf16":
        for more, steps in (
            statistics_launches(s, d, e, None, config.v_max, config.fragments),
            quantize_launches(s, d, e, config.pv, config.v_max, config.fragments),
        ):
            buffers += more
            launches += steps
    launches.append(attention_launch(length, s, d, e, config, None, quantize))
    return LaunchPlan(tuple(buffers), tuple(launches))


def launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """SageAttention's plan."""
    return _plan(dims, attributes, sm, False)


def quantize_launch_plan(dims: Mapping[str, Dim], attributes: Mapping[str, int | str], sm: int) -> LaunchPlan:
    """SageAttentionQuantize's plan."""
    return _plan(dims, attributes, sm, True)
