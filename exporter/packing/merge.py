"""One model out of two trainings: sparse-linear attention (SLA) and step distillation (rCM) from the same base.

The authors' merge_models.py calls them otherwise: its base is our rcm, its diff_base our base, its diff_target our sla.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from pathlib import Path

import torch

from exporter.checkpoint.finite import all_finite
from exporter.checkpoint.reader import NamedTensors
from exporter.checkpoint.source import FLOATS, TensorMeta
from exporter.checkpoint.table import listing
from exporter.networks.dit.weights import PROJ_L_SOURCE
from exporter.packing.merge_roles import check_roles
from exporter.packing.packer import converted
from exporter.packing.writer import SafetensorsWriter
from plugins.errors import UserError
from plugins.torch_dtypes import dtype_name, torch_dtype

_ROLES = {
    "base": "the pretrained model",
    "sla": "its sparse-linear attention training",
    "rcm": "its few-step training",
}
_PIECE = 2**22  # elements merged at once: bounds the fp32 temporaries to some 16 MiB each


def merge(
    base: Path,
    sla: Path,
    rcm: Path,
    out: Path,
    *,
    weight: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Write θ_base + w·(θ_sla − θ_base) + (θ_rcm − θ_base) as safetensors under canonical names.

    Formed per tensor in fp32 and cast to the widest of the three's dtypes; proj_l comes from ``sla`` as it is. The
    paths are in any supported form. ``note`` hears which is which, how far they are apart, and the dtype. Raises
    UserError if they are not float checkpoints of one architecture, if two seem to be swapped, and where the result is
    not finite.
    """
    if not math.isfinite(weight):
        raise UserError("This weight cannot be used.", expected="a finite number", got=str(weight))
    inputs = {role: NamedTensors(path) for role, path in (("base", base), ("sla", sla), ("rcm", rcm))}
    table = _table(inputs)
    note("; ".join(f"{role} is {source.path.name}, {_ROLES[role]}" for role, source in inputs.items()))
    note(f"{check_roles(inputs)}; the result is {_dtypes(table)}, the widest of the three")
    with SafetensorsWriter(out, table, {"format": "pt", **_origin(inputs, weight)}, progress) as writer:
        for name, meta in table.items():
            if _is_proj_l(name):
                writer.write(name, converted(inputs["sla"].load(name), meta.dtype, name))
            else:
                loaded = {role: source.load(name) for role, source in inputs.items()}
                writer.write(name, _merged(name, loaded, weight, meta.dtype))


def _dtypes(table: Mapping[str, TensorMeta]) -> str:
    counts = Counter(meta.dtype for meta in table.values())
    return ", ".join(f"{dtype} ({count} tensors)" for dtype, count in counts.most_common())


def _origin(inputs: Mapping[str, NamedTensors], weight: float) -> dict[str, str]:
    """What the merged file says of where it comes from."""
    names = {f"merged_{role}": _printable(source.path.name) for role, source in inputs.items()}
    return {**names, "merged_weight": f"{weight:g}"}


def _printable(name: str) -> str:
    """A file's name as UTF-8, which headers are in and names need not be."""
    return name.encode("utf-8", "replace").decode()


def _is_proj_l(name: str) -> bool:
    return f".{PROJ_L_SOURCE}." in name


def _table(inputs: Mapping[str, NamedTensors]) -> dict[str, TensorMeta]:
    """The merged file's tensors in order of their names. Raises UserError where the three do not agree."""
    for role, source in inputs.items():
        if source.quantized:
            raise UserError(
                f"{source.path} ({role}) is a -quant checkpoint.",
                expected="float weights",
                remedy="merge, then quantize",
            )
        if source.has_proj_l != (role == "sla"):
            raise UserError(
                f"{source.path} ({role}) {'holds' if source.has_proj_l else 'lacks'} proj_l.",
                expected="proj_l in the SLA checkpoint, and only there",
                remedy="check the order: base, sla, rcm",
            )
    base = inputs["base"].tensors
    differences = [line for role in ("sla", "rcm") for line in _differences(base, inputs[role].tensors, role)]
    differences += [
        f"{role} {name}: {meta}, not a float"
        for role, source in inputs.items()
        for name, meta in source.tensors.items()
        if meta.dtype not in FLOATS
    ]
    if differences:
        raise UserError(
            "The three checkpoints are not of one architecture.",
            expected="the same tensors in all, proj_l aside",
            got=listing(differences),
        )
    own = {name: meta for name, meta in inputs["sla"].tensors.items() if _is_proj_l(name)}
    wide = {name: TensorMeta(meta.shape, _widest(name, inputs)) for name, meta in base.items()}
    return dict(sorted((wide | own).items()))


def _widest(name: str, inputs: Mapping[str, NamedTensors]) -> str:
    """The narrowest dtype that holds all three's: fp32 of bf16 and fp16."""
    dtypes = [torch_dtype(source.tensors[name].dtype) for source in inputs.values()]
    return dtype_name(reduce(torch.promote_types, dtypes))


def _differences(base: Mapping[str, TensorMeta], other: Mapping[str, TensorMeta], role: str) -> list[str]:
    lines = []
    for name, meta in base.items():
        if name not in other:
            lines.append(f"{role} lacks {name}")
        elif other[name].shape != meta.shape:
            lines.append(f"{role} {name}: {list(other[name].shape)} where the base has {list(meta.shape)}")
    return lines + [f"{role} has {name}, the base not" for name in other if name not in base and not _is_proj_l(name)]


def _merged(name: str, loaded: Mapping[str, torch.Tensor], weight: float, dtype: str) -> Iterator[torch.Tensor]:
    """The merged tensor in pieces of its flattened elements. Raises UserError on NaN, infinity and overflow."""
    flat = {role: tensor.reshape(-1) for role, tensor in loaded.items()}
    for start in range(0, flat["base"].numel(), _PIECE):
        pieces = {role: tensor[start : start + _PIECE].to(torch.float32) for role, tensor in flat.items()}
        b, s, r = pieces.values()
        merged = (b + weight * (s - b) + (r - b)).to(torch_dtype(dtype))
        if not all_finite(merged):
            bad = [role for role, piece in pieces.items() if not all_finite(piece)]
            raise UserError(
                f"The merged {name} would hold NaN or infinity.",
                expected=f"finite weights, whose sum {dtype} can hold",
                got=f"NaN or infinity in {' and '.join(bad)}" if bad else "a sum that overflows",
                remedy="take another copy of it" if bad else "a smaller --weight, or inputs of a wider dtype",
            )
        yield merged
