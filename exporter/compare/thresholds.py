"""How far a result may be from its reference: one table for ops, one for blocks, steps and frames.

Relative L2 from above, PSNR in dB from below. The figures were set on random weights, two to four times what was
measured there or, for compiled kernels, what the GPU tests of the ops hold; trained weights may ask for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from exporter.spec import Attention
from exporter.weights import LinearMode

#: "fp32": against the model with the checkpoint's own weights. "same": against the same rounded arithmetic.
Against = Literal["fp32", "same"]


@dataclass(frozen=True)
class OpBound:
    """Relative L2 of one op on the same inputs: ``oracle`` against its oracle, ``unrounded`` against exact fp32."""

    oracle: float
    unrounded: float


DEFAULT_OP = OpBound(1e-2, 5e-2)

#: By op; an op with a ``precision`` attribute has a row for each value, "Op/precision".
OP_BOUNDS: Mapping[str, OpBound] = MappingProxyType(
    {
        "BlockInt8Quantize": OpBound(1e-2, 4e-2),
        "LayerNormQuantize": OpBound(1e-2, 4e-2),
        "BlockInt8Gemm": OpBound(3e-3, 3e-2),
        "BlockInt8GemmGelu": OpBound(1e-2, 5e-2),
        "BlockInt8GemmResidual": OpBound(3e-3, 3e-2),
        "QkNormRope": OpBound(5e-3, 1e-2),
        "RmsNorm": OpBound(5e-3, 1e-2),
        "SageSLA/int8": OpBound(5e-2, 5e-2),
        "SageSLA/bf16": OpBound(1e-2, 1e-2),
        "SageAttention/int8": OpBound(5e-2, 5e-2),
        "SageAttention/bf16": OpBound(1e-2, 1e-2),
    }
)


def op_bound(op: str, attributes: Mapping[str, int | str]) -> OpBound:
    """The row of an op; DEFAULT_OP where the table has none."""
    precision = attributes.get("precision")
    return OP_BOUNDS.get(op if precision is None else f"{op}/{precision}", DEFAULT_OP)


@dataclass(frozen=True)
class StageBound:
    """One teacher-forced block (x), one teacher-forced step (v and tokens), free-running tokens, final latent frames."""

    block: float
    step: float
    free: float
    frame_psnr: float


STAGE_BOUNDS: Mapping[tuple[Against, Attention, LinearMode], StageBound] = MappingProxyType(
    {
        ("fp32", "sagesla", "int8"): StageBound(8e-2, 1.5e-1, 3e-1, 20.0),
        ("fp32", "sla", "int8"): StageBound(8e-2, 1.5e-1, 3e-1, 20.0),
        ("fp32", "sage", "int8"): StageBound(8e-2, 1.5e-1, 3e-1, 20.0),
        ("fp32", "sagesla", "bf16"): StageBound(5e-2, 1e-1, 2e-1, 23.0),
        ("fp32", "sla", "bf16"): StageBound(3e-2, 5e-2, 1e-1, 30.0),
        ("fp32", "sage", "bf16"): StageBound(5e-2, 1e-1, 2e-1, 23.0),
        ("same", "sagesla", "int8"): StageBound(5e-2, 8e-2, 2e-1, 23.0),
        ("same", "sla", "int8"): StageBound(2e-2, 5e-2, 1e-1, 28.0),
        ("same", "sage", "int8"): StageBound(5e-2, 8e-2, 2e-1, 23.0),
        ("same", "sagesla", "bf16"): StageBound(5e-2, 8e-2, 2e-1, 23.0),
        ("same", "sla", "bf16"): StageBound(1e-2, 3e-2, 5e-2, 33.0),
        ("same", "sage", "bf16"): StageBound(5e-2, 8e-2, 2e-1, 23.0),
    }
)
