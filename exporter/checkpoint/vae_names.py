"""diffusers' names of the VAE's tensors (AutoencoderKLWan) → Wan's own."""

from __future__ import annotations

import re

from exporter.networks.vae.spec import Resample, VaeSpec, up_layers

_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_TOP = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
_SIDE = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
_MIDDLE = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}


def vae_name(name: str, spec: VaeSpec) -> str:
    """Wan's name of one of AutoencoderKLWan's tensors; any other, such as Wan's own, comes back as it is."""
    module, _, leaf = name.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{leaf}"
    side, _, rest = module.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    if rest in _SIDE:
        return f"{side}.{_SIDE[rest]}.{leaf}"
    if match := re.fullmatch(r"mid_block\.(\w+\.\d+)(?:\.(.+))?", rest):
        inner = _RESIDUAL.get(match[2], match[2])
        return f"{side}.{_MIDDLE.get(match[1], match[1])}.{inner}.{leaf}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.(.+)", rest):
        return f"{side}.downsamples.{match[1]}.{_RESIDUAL.get(match[2], match[2])}.{leaf}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.+)", rest):
        start = _level_starts(spec)[int(match[1])] if int(match[1]) < len(spec.multipliers) else 0
        index = start + int(match[3]) + (spec.residuals + 1 if match[2] == "upsamplers" else 0)
        return f"{side}.upsamples.{index}.{_RESIDUAL.get(match[4], match[4])}.{leaf}"
    return name


def _level_starts(spec: VaeSpec) -> tuple[int, ...]:
    """The number of the first layer of each level of the decoder."""
    ends = [index + 1 for index, layer in enumerate(up_layers(spec)) if isinstance(layer, Resample)]
    return (0, *ends)
