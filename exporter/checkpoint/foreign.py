"""Checkpoints quantized another way than the authors': recognised by name and dtype, and named in the refusal."""

from __future__ import annotations

import re
from collections.abc import Mapping

from exporter.checkpoint.source import TensorMeta
from plugins.errors import UserError


def _scale_of_rows(tensors: Mapping[str, TensorMeta]) -> bool:
    """Whether some int8_weight [N,K] has one scale a row, [N] or [N,1], in place of one a 128×128 block."""
    for name, meta in tensors.items():
        if name.endswith("int8_weight") and len(meta.shape) == 2:
            scale = tensors.get(name.removesuffix("int8_weight") + "scale")
            if scale is not None and scale.shape in ((meta.shape[0],), (meta.shape[0], 1)):
                return True
    return False


def foreign_scheme(tensors: Mapping[str, TensorMeta]) -> str | None:
    """The name of the foreign scheme, None for float and for the authors' own. The most telling marks come first."""
    leaves = {name.rpartition(".")[2] for name in tensors}
    dtypes = {meta.dtype for meta in tensors.values()}
    scaled = leaves & {"weight_scale", "scale_weight", "weight_scale_inv"}
    if "weight_scale_2" in leaves or any(dtype.startswith("float4_") for dtype in dtypes):
        return "NVFP4"
    if leaves & {"qweight", "qzeros", "g_idx"}:
        return "GPTQ/AWQ or SVDQuant (qweight)"
    if "absmax" in leaves or any(re.search(r"\.(quant_map|quant_state\.)", name) for name in tensors):
        return "bitsandbytes"
    if any(dtype.startswith("float6_") for dtype in dtypes):
        return "MXFP6"
    if any(dtype == "fp8" or dtype.startswith("float8_") for dtype in dtypes) or "scaled_fp8" in leaves:
        return "per-channel or per-tensor FP8 (float8)" if scaled or "scaled_fp8" in leaves else "FP8 (float8)"
    if _scale_of_rows(tensors) or (scaled and "int8" in dtypes):
        return "per-channel INT8"
    if scaled or leaves & {"input_scale", "comfy_quant"}:
        return f"a scheme with {sorted(scaled or leaves & {'input_scale', 'comfy_quant'})[0]}"
    if "int8" in dtypes and "int8_weight" not in leaves:
        return "INT8 without block scales"
    return None


def refuse_foreign(path: object, tensors: Mapping[str, TensorMeta]) -> None:
    """Raises UserError naming the scheme if the tensors are quantized another way than the authors'."""
    if scheme := foreign_scheme(tensors):
        raise foreign_error(path, scheme)


def foreign_error(path: object, scheme: str) -> UserError:
    return UserError(
        f"{path} is quantized another way: {scheme}.",
        expected="bf16, fp16 or fp32 weights, or TurboDiffusion's -quant form (int8_weight with one scale "
        "per 128x128 block)",
        got=scheme,
        remedy="pass the float checkpoint it was made from, or the authors' -quant file",
    )
