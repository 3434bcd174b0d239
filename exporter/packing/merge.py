"""One model out of two trainings: sparse-linear attention (SLA) and step distillation (rCM) from the same base."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from exporter.checkpoint.reader import NamedTensors
from exporter.checkpoint.source import FLOATS, TensorMeta
from exporter.checkpoint.table import listing
from exporter.networks.dit.weights import PROJ_L_SOURCE
from exporter.packing.writer import SafetensorsWriter
from plugins.errors import UserError

_PIECE = 2**22  # elements merged at once: bounds the fp32 temporaries to some 16 MiB each


def merge(
    base: Path,
    sla: Path,
    rcm: Path,
    out: Path,
    *,
    weight: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write θ_base + w·(θ_sla − θ_base) + (θ_rcm − θ_base) as safetensors under canonical names.

    Formed per tensor in fp32 and cast back to the base's dtype; proj_l comes from ``sla`` as it is. The paths are in
    any supported form. Raises UserError if they are not float checkpoints of one architecture.
    """
    if not math.isfinite(weight):
        raise UserError("This weight cannot be used.", expected="a finite number", got=str(weight))
    inputs = {role: NamedTensors(path) for role, path in (("base", base), ("sla", sla), ("rcm", rcm))}
    table = _table(inputs)
    with SafetensorsWriter(out, table, {"format": "pt"}, progress) as writer:
        for name in table:
            if _is_proj_l(name):
                writer.write(name, [inputs["sla"].load(name)])
            else:
                writer.write(name, _merged([source.load(name) for source in inputs.values()], weight))


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
    return dict(sorted((base | own).items()))


def _differences(base: Mapping[str, TensorMeta], other: Mapping[str, TensorMeta], role: str) -> list[str]:
    lines = []
    for name, meta in base.items():
        if name not in other:
            lines.append(f"{role} lacks {name}")
        elif other[name].shape != meta.shape:
            lines.append(f"{role} {name}: {list(other[name].shape)} where the base has {list(meta.shape)}")
    return lines + [f"{role} has {name}, the base not" for name in other if name not in base and not _is_proj_l(name)]


def _merged(parts: Sequence[torch.Tensor], weight: float) -> Iterator[torch.Tensor]:
    """(base, sla, rcm) merged, in pieces of its flattened elements, in the base's dtype."""
    flat = [tensor.reshape(-1) for tensor in parts]
    for start in range(0, flat[0].numel(), _PIECE):
        b, s, r = (tensor[start : start + _PIECE].to(torch.float32) for tensor in flat)
        yield (b + weight * (s - b) + (r - b)).to(parts[0].dtype)
