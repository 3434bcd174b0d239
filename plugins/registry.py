"""All ops by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from plugins.block_int8_gemm.op import BLOCK_INT8_GEMM, BLOCK_INT8_GEMM_GELU, BLOCK_INT8_GEMM_RESIDUAL
from plugins.block_int8_quantize.op import BLOCK_INT8_QUANTIZE
from plugins.layer_norm_quantize.op import LAYER_NORM_QUANTIZE
from plugins.op import Op
from plugins.rms_norm_rope.op import QK_NORM_ROPE, RMS_NORM
from plugins.sage_attention.op import SAGE_ATTENTION, SAGE_ATTENTION_QUANTIZE
from plugins.sage_sla.op import SAGE_SLA, SAGE_SLA_QUANTIZE

OPS: Mapping[str, Op] = MappingProxyType(
    {
        op.name: op
        for op in (
            BLOCK_INT8_QUANTIZE,
            LAYER_NORM_QUANTIZE,
            BLOCK_INT8_GEMM,
            BLOCK_INT8_GEMM_GELU,
            BLOCK_INT8_GEMM_RESIDUAL,
            QK_NORM_ROPE,
            RMS_NORM,
            SAGE_SLA,
            SAGE_SLA_QUANTIZE,
            SAGE_ATTENTION,
            SAGE_ATTENTION_QUANTIZE,
        )
    }
)
